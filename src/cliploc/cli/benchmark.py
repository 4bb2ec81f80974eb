"""`cliploc benchmark`: a grid of settings on a dataset, and its report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliploc._files import Inputs
from cliploc._imports import refuse_without
from cliploc._terminal import Terminal
from cliploc.cli.options import (
    TASKS,
    EngineFlags,
    MethodFlags,
    MetricFlags,
    ModelFlags,
    SampleFlags,
    WithJson,
    command,
    flag,
    method_names,
    metric_names,
    options_of_methods,
    pair_weights,
    rare,
    refuse_unknown,
    refuse_unknown_dataset,
)
from cliploc.cli.output import (
    DONE,
    SOME_FAILED,
    print_result,
    say_failures,
    say_next,
    say_problems,
    titled,
    writable,
)
from cliploc.config import (
    DEFAULTS,
    OF_LOCALIZATION,
    FaithfulnessOptions,
    Options,
    SegmentationOptions,
    choice,
    flags_of,
    parse_share,
)
from cliploc.errors import UsageError
from cliploc.reporter import SILENT

if TYPE_CHECKING:
    from cliploc.jobs.plan import ModelSetup, Setting
    from cliploc.jobs.task import BenchmarkResult
    from cliploc.recipes import Recipe

NEGATIVES = ("random", "popular", "confusable", "all")  # as in cliploc.datasets, which takes time to import
SEGMENTATION_TEMPLATES = "openai-80"  # as papers on segmentation use
# Options of views and boxes: a segmentation protocol has its own rules for these.
NOT_OF_SEGMENTATION = (
    "recipe", "background", "resize", "image_size", "scales", "windows", "flip", "components", "min_area", "max_boxes",
    "nms_iou", "split_peaks", "min_presence", "min_score", "learnt",
)  # fmt: skip
# Options of boxes, which faithfulness does not use. Its pictures are squashed, so that maps cover the whole picture.
NOT_OF_FAITHFULNESS = (
    "recipe", "resize", "components", "min_area", "max_boxes", "nms_iou", "split_peaks", "min_presence", "min_score",
)  # fmt: skip
REFUSED: dict[str, tuple[Sequence[str], Sequence[str]]] = {  # task → flags and options that it does not use
    "localization": ((), ()),
    "segmentation": (("--threshold", "--save-maps", "--subset", "--classes"), NOT_OF_SEGMENTATION),
    "faithfulness": (("--threshold", "--save-maps"), NOT_OF_FAITHFULNESS),
    "presence": (("--save-maps", "--no-baselines"), ()),
}
OF_TASK = {"--metric": "faithfulness", "--negatives": "presence"}
# Problems of a dataset that are failures of a run on it.
LOST = ("missing picture", "broken picture", "missing mask", "broken mask")


class BenchmarkFlags(SampleFlags, ModelFlags, MethodFlags, MetricFlags, EngineFlags, WithJson):
    """What `benchmark` has besides options of `Localizer` and of protocols."""

    dataset: str = flag("A dataset; `cliploc datasets` lists them.", metavar="NAME")
    root: Path = flag("The dataset's folder.", metavar="DIR")
    out: Path = flag("Folder for the results; a stopped run in it resumes.", metavar="DIR", group="output")
    task: str = flag(
        "Measure boxes, a class for each pixel (mIoU), whether maps show what the model uses, or what is found.",
        "localization",
        metavar="|".join(TASKS),
        check=choice("task", TASKS),
    )
    method: list[str] | None = flag(
        "Methods; `cliploc methods` lists them; repeatable.",
        None,
        metavar="NAME,NAME",
        none="each model's recipe",
        group="method",
    )
    head: list[Path] | None = rare(
        "Trained layers from `cliploc train`; repeatable.", None, metavar="FILE", group="method"
    )
    no_baselines: bool = rare("Leave out the two baselines without a model: box and Gaussian.", False, group="method")
    template: list[str] | None = rare(
        "One prompt setting each: a sentence with {}, a FILE.txt of them, or default, openai-80, openai-7, name-only.",
        None,
        metavar="TEXT",
        group="prompt",
    )
    threshold: list[str] | None = flag(
        "One box setting each.", None, metavar="0-1|own", none="each method's own", group="boxes"
    )
    negatives: str | None = flag(
        "Absent names that --task presence asks: as many as are there, drawn, most frequent or most often together "
        "with them; or all.",
        None,
        metavar="|".join(NEGATIVES),
        none="all",
        check=choice("negatives", NEGATIVES, none=True),
    )
    workers: int | None = rare("Processes that evaluate maps.", None, within=(1, 1024), none="cores - 1", group="run")
    no_pictures: bool = rare("Write the report without the pictures, so that it can be shared.", False, group="output")
    save_maps: bool = rare("Save score maps, in the format that `evaluate` reads.", False, group="output")


@command(
    leave_out=(
        "model",
        "pretrained",
        "method",
        "method_options",
        "head",
        "templates",
        "threshold",
        "text_cache",
        "masks_by",
    ),
    without={
        "min_presence": "0; with --task presence the usual minimum",
        "min_score": "0; with --task presence the recipe's",
        "second_look": "no; with --task presence the recipe's",
        "resize": "squash; with --task presence the model's own",
    },
)
def benchmark(
    asked: BenchmarkFlags, options: Options, segmentation: SegmentationOptions, faithfulness: FaithfulnessOptions
) -> int:
    """Evaluate methods on a dataset.

    The benchmark measures localization (WSOL), segmentation, faithfulness or presence, for all combinations of models,
    methods, prompts and thresholds. If the run is stopped, the same command resumes it.

    Example: cliploc benchmark --dataset wsol --root data --method cam,layer_cam --out results

    Example: cliploc benchmark --task segmentation --dataset voc21 --root data --method sclip --out results

    Example: cliploc benchmark --task faithfulness --dataset wsol --root data --method cam --steps 28 --out results

    Example: cliploc benchmark --task presence --dataset coco --root data --negatives confusable --out results
    """
    refuse_without("bench", "benchmark")
    refuse_unknown(asked.model or [], method_names(asked.method))
    task = asked.task
    own = {name: OF_TASK[name] for name in asked.given() if name in OF_TASK}
    own |= {flags_of(name)[0]: "segmentation" for name in segmentation.given()}
    own |= {flags_of(name)[0]: "faithfulness" for name in faithfulness.given()}
    for name, other in own.items():
        if task != other:
            raise UsageError(f"{name} is an option of --task {other}: add it, or leave {name} out")
    if task != "presence":
        options = options.but(**{key: value for key, value in OF_LOCALIZATION.items() if getattr(options, key) is None})
    refuse_unknown_dataset(asked.dataset, labelled=task == "segmentation")
    flags, not_of = REFUSED[task]  # so that nobody misreads its numbers
    usual = {name: OF_LOCALIZATION.get(name, getattr(DEFAULTS, name)) for name in not_of}
    changed = [flags_of(name)[0] for name, value in usual.items() if getattr(options, name) != value]
    if there := [*(name for name in flags if name in asked.given()), *changed]:
        raise UsageError(f"{there[0].partition('/')[0]} is not an option of --task {task}: leave it out")
    return _carried_out(_planned(asked, options, segmentation, faithfulness), asked)


@dataclass(frozen=True)
class _Plan:
    """A benchmark of one task, ready to run."""

    setups: Sequence[ModelSetup]  # models × prompts × trained heads
    settings: Sequence[Setting]
    left_out: Sequence[str]  # methods that do not run on a model, a line each
    files: Sequence[str]  # of its report
    run: Callable[..., BenchmarkResult]  # on a dataset, with these setups and settings, into a folder
    open: Callable[..., Any]  # reads the dataset


def _planned(
    asked: BenchmarkFlags, options: Options, of_segmentation: SegmentationOptions, of_faithfulness: FaithfulnessOptions
) -> _Plan:
    task, metrics = asked.task, metric_names(asked.metric) if asked.task == "faithfulness" else []
    from cliploc import prompts
    from cliploc.jobs.plan import ModelSetup

    usual: list[str | None] = [SEGMENTATION_TEMPLATES if task == "segmentation" else None]
    setups = [
        ModelSetup(
            options.but(model=model, pretrained=weights, templates=prompts.resolve_templates(words), head=head),
            prompts=words or "default",
        )
        for model, weights in pair_weights(asked.model or ["mini"], asked.pretrained)
        for words in asked.template or usual
        for head in (None, *map(str, asked.head or []))
    ]
    if task == "segmentation":
        from cliploc.datasets import open_labelled
        from cliploc.jobs import benchmark_segmentation as segmentation
        from cliploc.segmentation import protocol_of

        run = partial(segmentation.run_segmentation, protocol=protocol_of(asked.dataset, of_segmentation))
        return _Plan(setups, *_settings_without_boxes(asked, setups), segmentation.TASK.files, run, open_labelled)
    if task == "presence":
        from cliploc.datasets import open_asked
        from cliploc.jobs import benchmark_presence as presence

        return _Plan(*_settings_of_boxes(asked, setups), presence.TASK.files, presence.run_presence, open_asked)
    from cliploc.datasets import open_dataset

    if task == "faithfulness":
        from cliploc.faithfulness import chosen_metrics
        from cliploc.jobs import benchmark_faithfulness as faithfulness

        of_setups = _settings_without_boxes(asked, setups, () if asked.no_baselines else faithfulness.BASELINES)
        each_once = [metric.name for metric in chosen_metrics(metrics)]  # in a fixed order
        run = partial(faithfulness.run_faithfulness, metrics=each_once, options=of_faithfulness)
        return _Plan(setups, *of_setups, faithfulness.TASK.files, run, open_dataset)
    from cliploc import saliency
    from cliploc.jobs import benchmark_localization as localization

    of_boxes = _settings_of_boxes(asked, setups, () if asked.no_baselines else saliency.baselines())
    run = partial(localization.run_benchmark, save_maps=asked.save_maps, judges=asked.workers)
    return _Plan(*of_boxes, localization.TASK.files, run, open_dataset)


def _settings_of_boxes(
    asked: BenchmarkFlags, setups: Sequence[ModelSetup], baselines: Sequence[str] = ()
) -> tuple[Sequence[ModelSetup], tuple[Setting, ...], tuple[str, ...]]:
    """The setups with their recipes, the settings of a task with boxes, and what is left out of them."""
    from cliploc.jobs.benchmark_localization import unfit_for_setup
    from cliploc.jobs.plan import Grid

    methods, recipes = _methods_of(asked.method, setups)
    setups = list(setups)
    for place, recipe in enumerate(recipes):
        if recipe is not None:
            options = setups[place].options.but(recipe=None).filled(recipe.options)
            setups[place] = replace(setups[place], options=options)
    used = dict.fromkeys([*methods, *(recipe.method for recipe in recipes if recipe is not None)])
    of_methods = options_of_methods(list(used), asked.option)
    taus = [
        None if text == "own" else parse_share(text, "expected --threshold from 0 to 1, or own")
        for text in asked.threshold or ["own"]
    ]
    grid_of = Grid(setups, methods, lambda name: of_methods[name], taus, baselines, recipes)
    return setups, *grid_of.settings(unfit_for_setup)


def _settings_without_boxes(
    asked: BenchmarkFlags, setups: Sequence[ModelSetup], baselines: Sequence[str] = ()
) -> tuple[tuple[Setting, ...], tuple[str, ...]]:
    """The settings of a task without boxes, and what is left out; without `--method`, the recipe's method."""
    from cliploc.jobs.benchmark_localization import unfit_for_setup
    from cliploc.jobs.plan import Grid

    named, recipes = _methods_of(asked.method, setups)
    names = named or list(dict.fromkeys(recipe.method for recipe in recipes if recipe is not None))
    of_methods = options_of_methods(names, asked.option)
    unfit = unfit_for_setup if asked.method else lambda *of: None if unfit_for_setup(*of) is None else ""
    return Grid(setups, names, lambda name: of_methods[name], baselines=baselines).settings(unfit)


def _carried_out(plan: _Plan, asked: BenchmarkFlags) -> int:
    """Runs a benchmark and writes its report; prints what is left out, the dataset's problems, and the numbers."""
    from cliploc.jobs.picture_files import files_of
    from cliploc.jobs.task import EXPORTS
    from cliploc.report import write_report
    from cliploc.runs.store import FILE

    of_boxes, of_names = asked.task == "localization", asked.task == "presence"
    chosen, engine = asked.counted() if asked.task == "segmentation" else asked.chosen(), asked.parsed()
    if asked.task == "presence":
        chosen["negatives"] = asked.negatives or "all"
    terminal = Terminal()
    for line in plan.left_out:
        terminal.say(f"left out: {line.split(': use one of')[0]}", style="yellow")
    start_time = time.perf_counter()
    with terminal.progress(f"reading {asked.dataset}", speed=True) as reporter:
        dataset = plan.open(asked.dataset, asked.root, asked.split, **chosen)
        folder = writable(asked.out)
        check = ("cliploc", "datasets", asked.dataset, "--root", str(asked.root))
        to_see_all = shlex.join(check) if of_boxes else "report.html lists them"
        say_problems(terminal, dataset.problems, to_see_all)
        inputs = {path for sample in dataset.samples for path in (sample.path, *files_of(sample))}
        inputs |= {*(asked.head or []), *([Path(asked.classes)] if asked.classes else [])}
        written = [folder / name for name in (FILE, *EXPORTS, *plan.files)]
        Inputs(inputs).refuse(written, [folder / "maps"] if of_boxes else [])
        reporter.phase(f"loading {', '.join(dict.fromkeys(setup.model for setup in plan.setups))}")
        # Failures are printed at the end, with those of earlier runs.
        how: dict[str, Any] = {"engine": engine, "reporter": replace(reporter, failed=SILENT.failed)}
        if of_boxes or of_names:  # in a manifest, "classes" are those of the dataset
            chosen = {"classes_asked" if name == "classes" else name: value for name, value in chosen.items()}
        result = plan.run(dataset, plan.setups, plan.settings, folder, asked=chosen, **how)
    print_result(terminal, result.document(), titled(result.table()), result.legend(), as_json=asked.as_json)
    with terminal.progress("writing the report"):  # after the table, which is there if the disk is full
        page = write_report(folder, pictures=not asked.no_pictures)
    for line in result.costs():
        terminal.say(line, style="dim")
    say_failures(terminal, result.failed)
    terminal.say(result.closing(time.perf_counter() - start_time), style="dim")
    say_next(terminal, ("open", page), quiet=asked.as_json)
    return SOME_FAILED if result.failed or any(problem.kind in LOST for problem in dataset.problems) else DONE


def _methods_of(method: Sequence[str] | None, setups: Sequence[ModelSetup]) -> tuple[list[str], list[Recipe | None]]:
    """The methods asked for; without any, each setup's recipe, or the method of its trained head."""
    from cliploc.heads import read_config
    from cliploc.recipes import recipe_of
    from cliploc.saliency import find

    recipe = setups[0].options.recipe  # that of all
    names = method_names(method)
    trained = {setup.head: read_config(setup.head).method for setup in setups if setup.head is not None}
    if recipe is not None and (names or trained):
        given, values = ("--method", names) if names else ("--head", trained)
        raise UsageError(f"expected {given} or --recipe, got {', '.join(values)} and {recipe}: leave one out")
    if not names and not trained:
        return [], [recipe_of(setup.model, recipe or "default") for setup in setups]
    if not names:  # a trained head is compared with the same method without it
        own = (recipe_of(setup.model).method if setup.head is None else trained[setup.head] for setup in setups)
        return list(dict.fromkeys(own)), [None] * len(setups)
    for head, trained_for in trained.items():
        if trained_for not in {find(name).name for name in names}:
            raise UsageError(
                f"{head} is trained for {trained_for}, not for {', '.join(names)}: add {trained_for}, or leave "
                "--head out"
            )
    return names, [None] * len(setups)
