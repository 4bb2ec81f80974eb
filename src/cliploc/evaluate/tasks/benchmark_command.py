"""`cliploc benchmark`: a grid of settings on a dataset, and its report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliploc.cli.commands import tasks
from cliploc.cli.options import (
    DrawnFlags,
    EngineFlags,
    Flags,
    MethodFlags,
    MetricFlags,
    ModelFlags,
    SampleFlags,
    WithJson,
    check_known,
    command,
    flag,
    in_words,
    method_names,
    options_of_methods,
    pair_weights,
    rare,
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
from cliploc.cli.terminal import Terminal
from cliploc.errors import UsageError
from cliploc.evaluate.tasks.flags import metric_names, refuse_unknown_dataset
from cliploc.options import (
    OF_LOCALIZATION,
    FaithfulnessOptions,
    Options,
    SegmentationOptions,
    choice,
    parse_share,
)
from cliploc.support.files import Inputs
from cliploc.support.imports import refuse_without
from cliploc.support.reporter import SILENT

if TYPE_CHECKING:
    from cliploc.evaluate.tasks.task import BenchmarkResult
    from cliploc.find.recipes import Recipe
    from cliploc.runs.plan import ModelSetup, Setting

NEGATIVES = ("random", "popular", "confusable", "all")  # as in cliploc.datasets, which takes time to import
SEGMENTATION_TEMPLATES = "openai-80"  # as papers on segmentation use
LISTS = ("model", "pretrained", "method", "method_options", "head", "templates", "threshold")  # options, as lists here
NOT_MEASURED = (*LISTS, "text_cache", "masks_by")
OF_BOXES = (
    "recipe", "resize", "components", "min_area", "max_boxes", "nms_iou", "split_peaks", "min_presence", "min_score",
    "second_look", "calibration",
)  # fmt: skip
# A segmentation protocol has its own rules for these.
OF_VIEWS = ("background", "image_size", "scales", "windows", "flip", "learnt")
# Problems of a dataset that are failures of a run on it.
LOST = ("missing picture", "broken picture", "missing mask", "broken mask")


class BenchmarkFlags(DrawnFlags, ModelFlags, MethodFlags, EngineFlags, WithJson):
    """What every task has besides options of `Localizer` and of protocols."""

    dataset: str = flag("A dataset; `cliploc datasets` lists them.", metavar="NAME")
    root: Path = flag("The dataset's folder.", metavar="DIR")
    out: Path = flag("Folder for the results; a stopped run in it resumes.", metavar="DIR", group="output")
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
    template: list[str] | None = rare(
        "One prompt setting each: a sentence with {}, a FILE.txt of them, or default, openai-80, openai-7, name-only.",
        None,
        metavar="TEXT",
        group="prompt",
    )
    no_pictures: bool = rare("Write the report without the pictures, so that it can be shared.", False, group="output")


class WithBaselines(Flags):
    """Of tasks that also measure maps made without a model."""

    no_baselines: bool = rare("Leave out the two baselines without a model: box and Gaussian.", False, group="method")


class WithThresholds(Flags):
    """Of tasks with boxes."""

    threshold: list[str] | None = flag(
        "One box setting each.", None, metavar="0-1|own", none="each method's own", group="boxes"
    )


class BoxesFlags(BenchmarkFlags, SampleFlags, WithBaselines, WithThresholds):
    """What `benchmark boxes` has."""

    workers: int | None = rare("Processes that evaluate maps.", None, within=(1, 1024), none="cores - 1", group="run")
    save_maps: bool = rare("Save score maps, in the format that `evaluate` reads.", False, group="output")


class FaithfulnessFlags(BenchmarkFlags, SampleFlags, MetricFlags, WithBaselines):
    """What `benchmark faithfulness` has."""


class PresenceFlags(BenchmarkFlags, SampleFlags, WithThresholds):
    """What `benchmark presence` has."""

    negatives: str = flag(
        "Absent names that are asked: as many as are there, drawn, most frequent or most often together with them; or "
        "all.",
        "all",
        metavar="|".join(NEGATIVES),
        check=choice("negatives", NEGATIVES),
    )

    def chosen(self) -> dict[str, Any]:
        """How `open_asked` takes them."""
        return {**super().chosen(), "negatives": self.negatives}


@command(leave_out=NOT_MEASURED, without=in_words(OF_LOCALIZATION))
def boxes(asked: BoxesFlags, options: Options) -> int:
    """Measure maps and boxes by true boxes (WSOL).

    All combinations of models, methods, prompts and thresholds are measured. If the run is stopped, the same command
    resumes it.

    Example: cliploc benchmark boxes --dataset wsol --root data --method cam,layer_cam --out results
    """
    setups = _setups(asked, _for_true_names(options))
    from cliploc import methods as saliency
    from cliploc.evaluate.data import open_dataset
    from cliploc.evaluate.tasks.boxes import job

    plan = _settings_of_boxes(asked, setups, () if asked.no_baselines else saliency.baselines())
    run = partial(job.run_benchmark, save_maps=asked.save_maps, judges=asked.workers)
    return _carried_out(asked, plan, run, open_dataset, job.TASK.files)


@command(leave_out=(*NOT_MEASURED, *OF_BOXES, *OF_VIEWS))
def segmentation(asked: BenchmarkFlags, options: Options, protocol: SegmentationOptions) -> int:
    """Measure classes of pixels by true label maps (mIoU).

    All combinations of models, methods and prompts are measured. If the run is stopped, the same command resumes it.

    Example: cliploc benchmark segmentation --dataset voc21 --root data --method sclip --out results
    """
    setups = _setups(asked, _for_true_names(options), labelled=True, templates=SEGMENTATION_TEMPLATES)
    from cliploc.evaluate.data import open_labelled
    from cliploc.evaluate.tasks.segmentation import job
    from cliploc.find.segmentation.protocol import protocol_of

    run = partial(job.run_segmentation, protocol=protocol_of(asked.dataset, protocol))
    return _carried_out(asked, _settings_without_boxes(asked, setups), run, open_labelled, job.TASK.files)


@command(leave_out=(*NOT_MEASURED, *OF_BOXES))
def faithfulness(asked: FaithfulnessFlags, options: Options, protocol: FaithfulnessOptions) -> int:
    """Measure whether maps show what the model uses.

    All combinations of models, methods and prompts are measured. If the run is stopped, the same command resumes it.

    Example: cliploc benchmark faithfulness --dataset wsol --root data --method cam --steps 28 --out results
    """
    setups = _setups(asked, _for_true_names(options))
    metrics = metric_names(asked.metric)
    from cliploc.evaluate.data import open_dataset
    from cliploc.evaluate.tasks.faithfulness import job
    from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics

    plan = _settings_without_boxes(asked, setups, () if asked.no_baselines else job.BASELINES)
    each_once = [metric.name for metric in chosen_metrics(metrics)]  # in a fixed order
    run = partial(job.run_faithfulness, metrics=each_once, options=protocol)
    return _carried_out(asked, plan, run, open_dataset, job.TASK.files)


@command(leave_out=NOT_MEASURED)
def presence(asked: PresenceFlags, options: Options) -> int:
    """Measure which of many names are found in a picture.

    All combinations of models, methods, prompts and thresholds are measured. If the run is stopped, the same command
    resumes it.

    Example: cliploc benchmark presence --dataset coco --root data --negatives confusable --out results
    """
    setups = _setups(asked, options)
    from cliploc.evaluate.data import open_asked
    from cliploc.evaluate.tasks.presence import job

    return _carried_out(asked, _settings_of_boxes(asked, setups), job.run_presence, open_asked, job.TASK.files)


benchmark = tasks("Evaluate methods on a dataset.", boxes, segmentation, faithfulness, presence)


@dataclass(frozen=True)
class _Plan:
    """What a benchmark measures."""

    setups: Sequence[ModelSetup]  # models × prompts × trained heads
    settings: Sequence[Setting]
    left_out: Sequence[str]  # methods that do not run on a model, a line each


def _for_true_names(options: Options) -> Options:
    """The options of a task whose names are all in their pictures."""
    return options.but(**{name: value for name, value in OF_LOCALIZATION.items() if getattr(options, name) is None})


def _setups(
    asked: BenchmarkFlags, options: Options, *, labelled: bool = False, templates: str | None = None
) -> list[ModelSetup]:
    """Models × prompts × trained heads; what is unknown is refused first, before torch is imported."""
    refuse_without("bench", "benchmark")
    check_known(asked.model or [], method_names(asked.method))
    refuse_unknown_dataset(asked.dataset, labelled=labelled)
    from cliploc.find import prompts
    from cliploc.runs.plan import ModelSetup

    return [
        ModelSetup(
            options.but(model=model, pretrained=weights, templates=prompts.resolve_templates(words), head=head),
            prompts=words or "default",
        )
        for model, weights in pair_weights(asked.model or ["mini"], asked.pretrained)
        for words in asked.template or (templates,)
        for head in (None, *map(str, asked.head or []))
    ]


def _settings_of_boxes(
    asked: BoxesFlags | PresenceFlags, setups: Sequence[ModelSetup], baselines: Sequence[str] = ()
) -> _Plan:
    """The settings of a task with boxes, by their setups' recipes."""
    from cliploc.evaluate.tasks.boxes.job import unfit_for_setup
    from cliploc.runs.plan import Grid

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
    return _Plan(setups, *grid_of.settings(unfit_for_setup))


def _settings_without_boxes(
    asked: BenchmarkFlags, setups: Sequence[ModelSetup], baselines: Sequence[str] = ()
) -> _Plan:
    """The settings of a task without boxes; without `--method`, the recipe's method."""
    from cliploc.evaluate.tasks.boxes.job import unfit_for_setup
    from cliploc.runs.plan import Grid

    named, recipes = _methods_of(asked.method, setups)
    names = named or list(dict.fromkeys(recipe.method for recipe in recipes if recipe is not None))
    of_methods = options_of_methods(names, asked.option)
    unfit = unfit_for_setup if asked.method else lambda *of: None if unfit_for_setup(*of) is None else ""
    grid_of = Grid(setups, names, lambda name: of_methods[name], baselines=baselines)
    return _Plan(setups, *grid_of.settings(unfit))


def _carried_out(
    asked: BenchmarkFlags,
    plan: _Plan,
    run: Callable[..., BenchmarkResult],
    open_pictures: Callable[..., Any],
    files: Sequence[str],
) -> int:
    """Runs a benchmark and writes its report; prints what is left out, the dataset's problems, and the numbers."""
    from cliploc.evaluate.tasks.page import write_report
    from cliploc.evaluate.tasks.task import EXPORTS
    from cliploc.runs.picture_files import files_of
    from cliploc.runs.store import FILE

    chosen, engine = asked.chosen(), asked.parsed()
    terminal = Terminal()
    for line in plan.left_out:
        terminal.say(f"left out: {line.split(': use one of')[0]}", style="yellow")
    start_time = time.perf_counter()
    with terminal.progress(f"reading {asked.dataset}") as reporter:
        dataset = open_pictures(asked.dataset, asked.root, asked.split, **chosen)
        folder = writable(asked.out)
        say_problems(terminal, dataset.problems, "report.html lists them")
        inputs = {path for sample in dataset.samples for path in (sample.path, *files_of(sample))}
        inputs |= {
            *(asked.head or []),
            *([Path(asked.classes)] if isinstance(asked, SampleFlags) and asked.classes else []),
        }
        written = [folder / name for name in (FILE, *EXPORTS, *files)]
        Inputs(inputs).refuse(written, [folder / "maps"])
        reporter.phase(f"loading {', '.join(dict.fromkeys(setup.model for setup in plan.setups))}")
        # Failures are printed at the end, with those of earlier runs.
        how: dict[str, Any] = {"engine": engine, "reporter": replace(reporter, failed=SILENT.failed)}
        # In a manifest, "classes" are those of the dataset.
        chosen = {"classes_asked" if name == "classes" else name: value for name, value in chosen.items()}
        result = run(dataset, plan.setups, plan.settings, folder, asked=chosen, **how)
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
    from cliploc.find.heads import read_config
    from cliploc.find.recipes import recipe_of
    from cliploc.methods import find

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
