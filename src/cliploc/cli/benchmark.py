"""`cliploc benchmark`, and `cliploc report`, which writes its report again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from cliploc._extras import refuse_without
from cliploc._inputs import Inputs
from cliploc._terminal import Terminal, grid, printable
from cliploc.cli.options import (
    MOST_COUNTED,
    MOST_SEED,
    TASKS,
    Address,
    Debug,
    EngineName,
    Json,
    MethodOptions,
    ModelNames,
    Threads,
    Weights,
    class_names,
    localizer_options,
    method_names,
    metric_names,
    number_in,
    options_of_methods,
    pair_weights,
    parse_engine,
    refuse_unknown,
    refuse_unknown_dataset,
)
from cliploc.cli.output import (
    DONE,
    NOTHING_DONE,
    SHOWN_PROBLEMS,
    SOME_FAILED,
    complain,
    print_document,
    say_failures,
    title_row,
    writable,
)
from cliploc.config import (
    BENCHMARK,
    DEFAULTS,
    FaithfulnessOptions,
    Options,
    SegmentationOptions,
    flags_of,
    parse_share,
)
from cliploc.errors import UsageError
from cliploc.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from cliploc.jobs.engine import Engine
    from cliploc.jobs.plan import ModelSetup, Setting
    from cliploc.jobs.task import BenchmarkResult
    from cliploc.recipes import Recipe
    from cliploc.values import Problem

SEGMENTATION_TEMPLATES = "openai-80"  # as papers on segmentation use
# Options of views and boxes: a segmentation protocol has its own rules for these.
NOT_OF_SEGMENTATION = (
    "recipe", "background", "resize", "image_size", "scales", "windows", "flip", "components", "min_area", "max_boxes",
    "nms_iou", "split_peaks", "min_presence", "min_score",
)  # fmt: skip
# Options of boxes, which faithfulness does not use. Its pictures are squashed, so that maps cover the whole picture.
NOT_OF_FAITHFULNESS = (
    "recipe", "resize", "components", "min_area", "max_boxes", "nms_iou", "split_peaks", "min_presence", "min_score",
)  # fmt: skip
OF_LOCALIZATION = {**BENCHMARK.given(), "resize": "squash"}  # what differs from a localizer's defaults
LOST = (
    "missing picture",
    "broken picture",
    "missing mask",
    "broken mask",
)  # problems of a dataset that are failures of a run on it


@localizer_options(
    leave_out=("model", "pretrained", "method", "method_options", "head", "templates", "threshold", "text_cache"),
    defaults=OF_LOCALIZATION,
    segmentation=True,
    faithfulness=True,
)
def benchmark(
    dataset: Annotated[str, typer.Option(metavar="NAME", help="A dataset; `cliploc datasets` lists them.")],
    root: Annotated[Path, typer.Option(metavar="DIR", help="The dataset's folder.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results; a stopped run in it resumes.")],
    task: Annotated[
        str,
        typer.Option(
            metavar="|".join(TASKS),
            help="Measure boxes, a class for each pixel (mIoU), or whether maps show what the model uses.",
        ),
    ] = "localization",
    split: Annotated[str | None, typer.Option(help="Split of the dataset. [default: its first]")] = None,
    subset: Annotated[
        str | None, typer.Option(metavar="ten-classes", help="Use only the classes of this subset.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Use only these classes: names, synonyms or WordNet ids.")
    ] = None,
    limit: Annotated[int | None, number_in(1, MOST_COUNTED, "Use only the first N samples.")] = None,
    sample: Annotated[int | None, number_in(1, MOST_COUNTED, "Use N samples drawn at random.")] = None,
    seed: Annotated[int, number_in(0, MOST_SEED, "Random seed of --sample.")] = 0,
    model: ModelNames = None,
    pretrained: Weights = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME,NAME",
            help="Methods; `cliploc methods` lists them; repeatable. [default: each model's recipe]",
        ),
    ] = None,
    option: MethodOptions = None,
    head: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Trained layers from `cliploc train`; repeatable.")
    ] = None,
    no_baselines: Annotated[
        bool, typer.Option("--no-baselines", help="Leave out the two baselines without a model: box and Gaussian.")
    ] = False,
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            metavar="TEXT",
            help="One prompt setting each: a sentence with {}, a FILE.txt of them, or default, openai-80, openai-7, "
            "name-only.",
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="0-1|own", help="One box setting each. [default: each method's own]"),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME,NAME",
            help="Metrics of --task faithfulness; repeatable. See `cliploc help faithfulness`. "
            "[default: deletion,insertion]",
        ),
    ] = None,
    workers: Annotated[int | None, number_in(1, 1024, "Processes that evaluate maps. [default: cores - 1]")] = None,
    engine: EngineName = "local",
    address: Address = None,
    threads: Threads = None,
    save_maps: Annotated[
        bool, typer.Option("--save-maps", help="Save score maps, in the format that `evaluate` reads.")
    ] = False,
    *,
    options: Options,
    segmentation: SegmentationOptions,
    faithfulness: FaithfulnessOptions,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Evaluate methods on a dataset.

    The benchmark measures localization (WSOL), segmentation or faithfulness, for all combinations of models, methods,
    prompts and thresholds. If the run is stopped, the same command resumes it.

    Example: cliploc benchmark --dataset wsol --root data --method cam,layer_cam --out results

    Example: cliploc benchmark --task segmentation --dataset voc21 --root data --method sclip --out results

    Example: cliploc benchmark --task faithfulness --dataset wsol --root data --method cam --steps 28 --out results
    """
    refuse_without("bench", "benchmark")
    refuse_unknown(model or [], method_names(method) if method else [])
    if task not in TASKS:
        raise UsageError(f"expected --task to be one of {', '.join(TASKS)}, got {task!r}")
    given_of = {"segmentation": segmentation.given(), "faithfulness": faithfulness.given()}
    for other, left in given_of.items():
        if task != other and left:
            flag = flags_of(next(iter(left)))[0]
            raise UsageError(f"{flag} is an option of --task {other}: add it, or leave {flag} out")
    if task != "faithfulness" and metric:
        raise UsageError("--metric is an option of --task faithfulness: add it, or leave --metric out")
    refuse_unknown_dataset(dataset, labelled=task == "segmentation")
    metrics = metric_names(metric) if task == "faithfulness" else []
    names = class_names(classes) if classes else None
    some = {"limit": limit, "sample": sample, "seed": seed}
    of_boxes = {"--threshold": threshold, "--save-maps": save_maps or None}
    templates = template or ([SEGMENTATION_TEMPLATES] if task == "segmentation" else None)

    def asked(**chosen: Any) -> _Asked:
        setups = _setups(options, model or ["mini"], pretrained, templates, [None, *(head or [])])
        return _Asked(
            dataset, root, split, chosen, setups, method, option or [], parse_engine(engine, address, threads)
        )

    if task == "localization":
        work = _localization(
            asked(subset=subset, classes=names, **some),
            thresholds=threshold or ["own"],
            baselines=not no_baselines,
            recipe=options.recipe,
            files=[*(head or []), *([classes] if classes else [])],
            judges=workers,
            save_maps=save_maps,
        )
    elif task == "segmentation":
        _refuse_options(task, {**of_boxes, "--subset": subset, "--classes": classes}, options, NOT_OF_SEGMENTATION)
        work = _segmentation(asked(**some), segmentation)
    else:
        _refuse_options(task, of_boxes, options, NOT_OF_FAITHFULNESS)
        work = _faithfulness(asked(subset=subset, classes=names, **some), metrics, not no_baselines, faithfulness)
    return _carried_out(work, out, as_json)


@dataclass(frozen=True)
class _Asked:
    """What a benchmark of any task is asked for."""

    dataset: str  # its name
    root: Path  # its folder
    split: str | None  # its split; None for the usual one
    chosen: Mapping[str, Any]  # which of its pictures, as `open_dataset` takes it
    setups: Sequence[ModelSetup]  # models × prompts × trained heads
    method: Sequence[str] | None  # `--method`; None for the recipes'
    option: Sequence[str]  # `--option` of methods
    engine: Engine  # carries the work out


def _refuse_options(task: str, given: Mapping[str, object], options: Options, not_of: Sequence[str]) -> None:
    """Refuses options that the task does not use, so that nobody misreads its numbers."""
    flags = [flag for flag, value in given.items() if value is not None]
    there = [*flags, *(flags_of(name)[0] for name in not_of if _given(options, name))]
    if there:
        raise UsageError(f"{there[0].partition('/')[0]} is not an option of --task {task}: leave it out")


def _given(options: Options, name: str) -> bool:
    return bool(getattr(options, name) != OF_LOCALIZATION.get(name, getattr(DEFAULTS, name)))


def _localization(
    asked: _Asked,
    *,
    thresholds: Sequence[str],
    baselines: bool,
    recipe: str | None,
    files: Sequence[str | Path],
    judges: int | None,
    save_maps: bool,
) -> _Work:
    """`benchmark --task localization`; `files` are inputs besides the dataset's."""
    from cliploc import saliency
    from cliploc.datasets import open_dataset
    from cliploc.jobs.benchmark import run_benchmark, unfit_for_setup
    from cliploc.jobs.plan import Grid
    from cliploc.report.benchmark import FILES, write_report

    methods, recipes = _methods_of(asked.method, asked.setups, recipe)
    setups = [_with_recipe(one, of_setup) for one, of_setup in zip(asked.setups, recipes, strict=True)]
    used = dict.fromkeys([*methods, *(one.method for one in recipes if one is not None)])
    of_methods = options_of_methods(list(used), asked.option)
    taus = [
        None if text == "own" else parse_share(text, "expected --threshold from 0 to 1, or own") for text in thresholds
    ]
    beside = saliency.baselines() if baselines else ()
    grid_of = Grid(setups, methods, lambda name: of_methods[name], taus, beside, recipes)
    settings, left_out = grid_of.settings(unfit_for_setup)
    said = {"classes_asked" if name == "classes" else name: value for name, value in asked.chosen.items()}
    return _Work(
        asked.dataset,
        setups,
        left_out,
        read=lambda: open_dataset(asked.dataset, asked.root, asked.split, **asked.chosen),
        problems_at=f"cliploc datasets {asked.dataset} --root {asked.root}",
        inputs=lambda found: [*(path for one in found.samples for path in (one.path, *one.masks)), *files],
        outputs=(["manifest.json", "summary.json", *FILES], ["parts", "maps"]),
        run=lambda found, folder, reporter: run_benchmark(
            found,
            setups,
            settings,
            folder,
            engine=asked.engine,
            save_maps=save_maps,
            judges=judges,
            asked=said,
            reporter=reporter,
        ),
        report=write_report,
    )


def _segmentation(asked: _Asked, options: SegmentationOptions) -> _Work:
    """`benchmark --task segmentation`."""
    from cliploc.datasets import open_labelled
    from cliploc.jobs.segmentation import FILES, run_segmentation
    from cliploc.report.segmentation import write_segmentation_report
    from cliploc.segmentation import protocol_of

    protocol = protocol_of(asked.dataset, options)
    settings, left_out = _settings_without_boxes(asked)
    return _Work(
        asked.dataset,
        asked.setups,
        left_out,
        read=lambda: open_labelled(asked.dataset, asked.root, asked.split, **asked.chosen),
        problems_at="report.html lists them",
        inputs=lambda found: [path for one in found.samples for path in (one.path, *one.truth.files)],
        outputs=(["manifest.json", *FILES], ["parts"]),
        run=lambda found, folder, reporter: run_segmentation(
            found,
            asked.setups,
            settings,
            protocol,
            folder,
            engine=asked.engine,
            asked=asked.chosen,
            reporter=reporter,
        ),
        report=write_segmentation_report,
    )


def _faithfulness(asked: _Asked, metrics: Sequence[str], baselines: bool, options: FaithfulnessOptions) -> _Work:
    """`benchmark --task faithfulness`."""
    from cliploc.datasets import open_dataset
    from cliploc.faithfulness import chosen_metrics
    from cliploc.jobs.faithfulness import BASELINES, FILES, run_faithfulness
    from cliploc.report.faithfulness import write_faithfulness_report

    settings, left_out = _settings_without_boxes(asked, BASELINES if baselines else ())
    return _Work(
        asked.dataset,
        asked.setups,
        left_out,
        read=lambda: open_dataset(asked.dataset, asked.root, asked.split, **asked.chosen),
        problems_at="report.html lists them",
        inputs=lambda found: [one.path for one in found.samples],
        outputs=(["manifest.json", *FILES], ["parts"]),
        run=lambda found, folder, reporter: run_faithfulness(
            found,
            asked.setups,
            settings,
            folder,
            metrics=[one.name for one in chosen_metrics(metrics)],  # each once, in a fixed order
            options=options,
            engine=asked.engine,
            asked=asked.chosen,
            reporter=reporter,
        ),
        report=write_faithfulness_report,
    )


def _settings_without_boxes(
    asked: _Asked, baselines: Sequence[str] = ()
) -> tuple[tuple[Setting, ...], tuple[str, ...]]:
    """The settings of a task without boxes, and what is left out of them.

    Without `--method`, the method is that of each model's recipe; the recipe's other options are about boxes.
    """
    from cliploc.jobs.benchmark import unfit_for_setup
    from cliploc.jobs.plan import Grid
    from cliploc.recipes import recipe_of

    setups, named = asked.setups, asked.method
    names = method_names(named) if named else list(dict.fromkeys(recipe_of(one.model).method for one in setups))
    of_methods = options_of_methods(names, asked.option)
    unfit = unfit_for_setup if named else lambda setup, name: "" if unfit_for_setup(setup, name) else None
    return Grid(setups, names, lambda name: of_methods[name], baselines=baselines).settings(unfit)


@dataclass(frozen=True)
class _Work:
    """A benchmark of one task, ready to run."""

    dataset: str  # its name
    setups: Sequence[ModelSetup]  # of the run
    left_out: Sequence[str]  # methods that do not run on a model, a line each
    read: Callable[[], Any]  # opens the dataset
    problems_at: str  # where all problems of the dataset are listed
    inputs: Callable[[Any], Sequence[str | Path]]  # the files that a run on the dataset reads
    outputs: tuple[Sequence[str], Sequence[str]]  # files and folders that it writes, by name
    # runs it on the dataset, into a folder
    run: Callable[[Any, Path, Reporter], BenchmarkResult]
    report: Callable[[Path], object]  # writes the folder's report


def _carried_out(work: _Work, out: Path, as_json: bool) -> int:
    """Runs a benchmark and writes its report; prints what is left out, the dataset's problems, and the numbers."""
    from cliploc.jobs.folder import DiskFullError

    terminal = Terminal()
    for line in work.left_out:
        terminal.say(f"left out: {line.split(': use one of')[0]}", style="yellow")
    folder = writable(out)
    start_time = time.perf_counter()
    with terminal.progress(f"reading {work.dataset}", rate="images/s") as reporter:
        found = work.read()
        _say_problems(terminal, found.problems, work.problems_at)
        files, folders = ([folder / one for one in names] for names in work.outputs)
        Inputs(work.inputs(found)).refuse(files, folders)
        reporter.phase(f"loading {', '.join(dict.fromkeys(setup.model for setup in work.setups))}")
        try:
            # Failures are printed at the end, with those of earlier runs.
            result = work.run(found, folder, replace(reporter, failed=SILENT.failed))
        except DiskFullError as full:
            complain(str(full))
            return SOME_FAILED if full.kept else NOTHING_DONE
        reporter.phase("report")
        work.report(folder)
    return _concluded(terminal, result, found.problems, time.perf_counter() - start_time, as_json)


def _say_problems(terminal: Terminal, problems: Sequence[Problem], all_of_them: str) -> None:
    """Prints a dataset's first problems, and where all of them are listed."""
    for problem in problems[:SHOWN_PROBLEMS]:
        terminal.say(f"{problem.kind}: {problem.source}: {problem.reason}", style="yellow")
    if len(problems) > SHOWN_PROBLEMS:
        terminal.say(f"{len(problems)} problems in all: {all_of_them}", style="yellow")


def _concluded(
    terminal: Terminal,
    result: BenchmarkResult,
    problems: Sequence[Problem],
    seconds: float,
    as_json: bool,
) -> int:
    """Prints a run's numbers and what failed; returns the exit code."""
    if as_json:
        print_document(result.document())
    else:
        titles, *lines = result.table()
        terminal.data(grid([title_row(*titles), *lines]))
        for line in result.legend():
            terminal.data(Text(printable(line)))
    say_failures(terminal, result.failed)
    terminal.say(result.closing(seconds), style="dim")
    return SOME_FAILED if result.failed or any(one.kind in LOST for one in problems) else DONE


def _setups(
    options: Options,
    models: Sequence[str],
    pretrained: Sequence[str] | None,
    templates: Sequence[str] | None,
    heads: Sequence[Path | None],
) -> list[ModelSetup]:
    """Models × prompts × trained heads of a benchmark."""
    from cliploc import prompts
    from cliploc.jobs.plan import ModelSetup

    return [
        ModelSetup(
            options.but(
                model=model,
                pretrained=weights,
                templates=prompts.resolve_templates(words),
                head=None if head is None else str(head),
            ),
            prompts=words or "default",
        )
        for model, weights in pair_weights(models, pretrained)
        for words in (*(templates or ()), *(() if templates else (None,)))
        for head in heads
    ]


def _methods_of(
    method: Sequence[str] | None, setups: Sequence[ModelSetup], recipe: str | None
) -> tuple[list[str], list[Recipe | None]]:
    """The methods asked for; without any, each setup's recipe, or the method of its trained head."""
    from cliploc.heads import read_config
    from cliploc.recipes import recipe_of
    from cliploc.saliency import find

    if method:
        names = method_names(method)
        if recipe is not None:
            raise UsageError(f"expected --method or --recipe, got {', '.join(names)} and {recipe}: leave one out")
        for head in dict.fromkeys(one.head for one in setups if one.head is not None):
            trained_for = read_config(head).method
            if trained_for not in {find(name).name for name in names}:
                raise UsageError(
                    f"{head} is trained for {trained_for}, not for {', '.join(names)}: add {trained_for}, or leave "
                    "--head out"
                )
        return names, [None] * len(setups)
    of_heads = dict.fromkeys(read_config(one.head).method for one in setups if one.head is not None)
    if of_heads and recipe is None:  # a trained head is compared with the same method without it
        own = [recipe_of(one.model).method if one.head is None else read_config(one.head).method for one in setups]
        return list(dict.fromkeys(own)), [None] * len(setups)
    return [], [None if one.head is not None else recipe_of(one.model, recipe or "default") for one in setups]


def _with_recipe(setup: ModelSetup, recipe: Recipe | None) -> ModelSetup:
    """The setup with the recipe's options, except the threshold, which belongs to a setting."""
    if recipe is None:
        return setup
    from cliploc.jobs.plan import OF_SETTING

    values = {name: value for name, value in recipe.options.items() if name not in OF_SETTING}
    return replace(setup, options=setup.options.but(recipe=None).filled(values))


def report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The results folder of a benchmark.")],
    no_pictures: Annotated[
        bool,
        typer.Option(
            "--no-pictures", help="Show maps and boxes without the photographs, so that the report can be shared."
        ),
    ] = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Write a benchmark's report and tables again.

    No model is loaded.

    Example: cliploc report results --no-pictures
    """
    refuse_without("bench", "report")
    from cliploc.report import write_report
    from cliploc.report.faithfulness import write_faithfulness_report
    from cliploc.report.segmentation import write_segmentation_report
    from cliploc.report.task_folder import kind_of

    terminal = Terminal()
    other = {"segmentation": write_segmentation_report, "faithfulness": write_faithfulness_report}.get(kind_of(out))
    with terminal.progress("writing the report"):
        path = (other or write_report)(out, pictures=not no_pictures)
    terminal.data(Text(printable(str(path))))
    terminal.say(f"and tables.csv, tables.md{', tables.tex' if other is None else ''} in {path.parent}", style="dim")
    return DONE
