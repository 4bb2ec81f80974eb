"""What the commands of all tasks share: the flags of `benchmark`, its plan and its run; what `evaluate` prints."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cliploc import methods
from cliploc.cli import options as cli
from cliploc.cli import output
from cliploc.cli.options import flag, rare
from cliploc.cli.terminal import Terminal, grid, titled
from cliploc.errors import UsageError
from cliploc.find.recipes import Recipe, recipe_of
from cliploc.options import OF_LOCALIZATION, Options, parse_list
from cliploc.runs.plan import ModelSetup, Setting, expand_grid
from cliploc.runs.store import FILE
from cliploc.support.files import Inputs, write_output
from cliploc.support.imports import check_installed
from cliploc.support.reporter import SILENT

LISTS = ("model", "pretrained", "method", "method_options", "head", "templates")  # options, as lists here
NOT_MEASURED = (*LISTS, "text_cache", "masks_by")
OF_BOXES = (
    "recipe", "threshold", "resize", "components", "min_area", "max_boxes", "nms_iou", "split_peaks", "min_presence",
    "min_score", "second_look", "calibration",
)  # fmt: skip
# Problems of a dataset that are failures of a run on it.
LOST = ("missing picture", "broken picture", "missing mask", "broken mask")


# ----------------------------------------------------------------------------------------------------------- benchmark
class BenchmarkFlags(cli.DrawnFlags, cli.ModelFlags, cli.MethodFlags, cli.EngineFlags, cli.WithJson):
    """What every task has besides options of `Localizer` and of protocols."""

    dataset: str = flag("A dataset; `cliploc datasets` lists them.", metavar="NAME")
    root: Path = flag("The dataset's folder.", metavar="DIR")
    out: Path = flag("Folder for the results; a stopped run in it resumes.", metavar="DIR", group="output")
    method: list[str] | None = flag(
        "Methods; `cliploc methods` lists them; repeatable.", None, metavar="NAME,NAME", none="each model's recipe",
        group="method",
    )  # fmt: skip
    head: list[Path] | None = rare(
        "Trained layers from `cliploc train`; repeatable.", None, metavar="FILE", group="method"
    )
    template: list[str] | None = rare(
        "One prompt setting each: a sentence with {}, a FILE.txt of them, or default, openai-80, openai-7, name-only.",
        None, metavar="TEXT", group="prompt",
    )  # fmt: skip
    columns: str | None = rare(
        "Numbers of tables.tex, by their keys in summary.json.", None, metavar="KEY,KEY", none="those printed",
        group="output",
    )  # fmt: skip
    no_pictures: bool = rare("Write the report without the pictures, so that it can be shared.", False, group="output")


class WithBaselines(cli.Flags):
    """Of tasks that also measure maps made without a model."""

    no_baselines: bool = rare("Leave out the two baselines without a model: box and Gaussian.", False, group="method")


@dataclass(frozen=True)
class Plan:
    """What a benchmark measures."""

    setups: Sequence[ModelSetup]  # models × prompts × trained heads
    settings: Sequence[Setting]
    left_out: Sequence[str]  # methods that do not run on a model, a line each


def for_true_names(options: Options) -> Options:
    """The options of a task whose names are all in their pictures."""
    return options.but(**{name: value for name, value in OF_LOCALIZATION.items() if getattr(options, name) is None})


def plan_of(
    flags: BenchmarkFlags,
    options: Options,
    baselines: Callable[[], Sequence[str]] = tuple,
    *,
    recipes: bool = False,  # whether the task is of boxes, which recipes are for
    labelled: bool = False,
    templates: str | None = None,
) -> Plan:
    """Models × prompts × trained heads × methods; unknown names are refused before torch is imported."""
    check_installed("bench", "benchmark")
    named = cli.method_names(flags.method)
    cli.check_known(flags.model or [], named)
    check_dataset(flags.dataset, labelled=labelled)
    from cliploc.evaluate.tasks.boxes.job import unfit_for_setup
    from cliploc.find import prompts

    default = templates or "default"
    setups = [
        ModelSetup(
            options.but(model=model, pretrained=weights, templates=prompts.resolve_templates(words), head=head),
            words or default,
        )
        for model, weights in cli.pair_weights(flags.model or ["mini"], flags.pretrained)
        for words in flags.template or (templates,)
        for head in (None, *map(str, flags.head or []))
    ]
    chosen, of_setups = _methods_of(named, setups)
    of_recipes = list(dict.fromkeys(recipe.method for recipe in of_setups if recipe is not None))
    options_of = cli.options_of_methods(list(dict.fromkeys([*chosen, *of_recipes])), flags.option).__getitem__
    if not recipes:
        # Without --method, a method that does not run on another model is left out without a line.
        unfit = unfit_for_setup if named else lambda *of: None if unfit_for_setup(*of) is None else ""
        return Plan(setups, *expand_grid(setups, chosen or of_recipes, unfit, options_of, baselines(), (), default))
    setups = [
        setup if recipe is None else replace(setup, options=setup.options.but(recipe=None).filled(recipe.options))
        for setup, recipe in zip(setups, of_setups, strict=True)
    ]
    return Plan(setups, *expand_grid(setups, chosen, unfit_for_setup, options_of, baselines(), of_setups, default))


def _methods_of(named: list[str], setups: Sequence[ModelSetup]) -> tuple[list[str], list[Recipe | None]]:
    """The named methods; without any, each setup's recipe, or the method of its trained head."""
    from cliploc.find.heads import read_config

    recipe = setups[0].options.recipe  # that of all
    trained = {setup.head: read_config(setup.head).method for setup in setups if setup.head is not None}
    if recipe is not None and (named or trained):
        option, values = ("--method", named) if named else ("--head", trained)
        raise UsageError(f"expected {option} or --recipe, got {', '.join(values)} and {recipe}: leave one out")
    if not named and not trained:
        return [], [recipe_of(setup.model, recipe or "default") for setup in setups]
    if not named:  # a trained head is compared with the same method without it
        each = (recipe_of(setup.model).method if setup.head is None else trained[setup.head] for setup in setups)
        return list(dict.fromkeys(each)), [None] * len(setups)
    for head, method in trained.items():
        if method not in {methods.find(name).name for name in named}:
            raise UsageError(
                f"{head} is trained for {method}, not for {', '.join(named)}: add {method}, or leave --head out"
            )
    return named, [None] * len(setups)


def run_plan(
    flags: BenchmarkFlags,
    plan: Plan,
    run: Callable[..., Any],  # → a `BenchmarkResult`
    open_pictures: Callable[..., Any],
    files: Sequence[str],
) -> int:
    """Runs a benchmark and writes its report; prints what is left out, the dataset's problems, and the numbers."""
    from cliploc.evaluate.tasks.page import write_report
    from cliploc.evaluate.tasks.task import EXPORTS
    from cliploc.runs.picture_files import files_of

    selection, engine, terminal = flags.chosen(), flags.parsed(), Terminal()
    columns = parse_list(flags.columns or "")
    for line in plan.left_out:
        terminal.say(f"left out: {line.split(': use one of')[0]}", style="yellow")
    start_time = time.perf_counter()
    with terminal.progress(f"reading {flags.dataset}") as reporter:
        dataset = open_pictures(flags.dataset, flags.root, flags.split, **selection)
        folder = output.writable(flags.out)
        terminal.say_problems(dataset.problems, "report.html lists them")
        inputs = {path for sample in dataset.samples for path in (sample.path, *files_of(sample))}
        inputs |= {*(flags.head or [])}
        if isinstance(flags, cli.SampleFlags) and flags.classes:
            inputs.add(Path(flags.classes))
        Inputs(inputs).check_outputs([folder / name for name in (FILE, *EXPORTS, *files)], [folder / "maps"])
        reporter.phase(f"loading {', '.join(dict.fromkeys(setup.model for setup in plan.setups))}")
        # In a manifest, "classes" are those of the dataset.
        selection = {"classes_asked" if name == "classes" else name: value for name, value in selection.items()}
        silent = replace(reporter, failed=SILENT.failed)  # failures are printed at the end, with those of earlier runs
        how = {"selection": selection, "engine": engine, "reporter": silent, "columns": columns}
        result = run(dataset, plan.setups, plan.settings, folder, **how)
    terminal.print_result(result.document(), titled(result.table()), result.legend(), as_json=flags.as_json)
    with terminal.progress("writing the report"):  # after the table, which is printed even if the disk is full
        page = write_report(folder, pictures=not flags.no_pictures)
        write_output(folder / "tables.tex", result.latex(columns).encode(), "--out")
    terminal.say_failures(result.failed)
    terminal.say(result.closing(time.perf_counter() - start_time), style="dim")
    terminal.say_next(("open", page), quiet=flags.as_json)
    lost = any(problem.kind in LOST for problem in dataset.problems)
    return output.SOME_FAILED if result.failed or lost else output.DONE


def check_dataset(name: str, *, labelled: bool = False) -> None:
    """Refuses an unknown dataset (`labelled`: of label maps) before torch is imported."""
    from cliploc.evaluate.data import labelled_readers, readers

    (labelled_readers if labelled else readers).check_known(name)


# ------------------------------------------------------------------------------------------------------------ evaluate
class MapsFlags(cli.WithJson):
    """Of tasks that read score maps."""

    maps: Path = flag("Folder of score maps, <image_id>.npy: floats in 0-1.", metavar="DIR")


def print_folder(result: Any, *, as_json: bool) -> int:
    """Prints the numbers of an `EvaluatedFolder`, how many pictures it has, and what was wrong with the others."""
    from cliploc.evaluate.tasks.tables import seven_digits

    terminal, document = Terminal(), result.document
    terminal.print_result(seven_digits(document), grid(result.lines), as_json=as_json)
    counts = (f"{count} {kind} problem{'s' * (count > 1)}" for kind, count in document["problems"].items())
    done = f"{document['evaluated']} of {document['images']} pictures evaluated"
    terminal.say("; ".join(filter(None, [done, ", ".join(counts)])), style="dim")
    return output.SOME_FAILED if document["failed"] else output.DONE
