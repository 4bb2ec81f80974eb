"""Writes a labelling benchmark's report as one HTML page, and its tables as CSV and Markdown; no model is loaded."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cliploc._documents import LabellingManifest
from cliploc.errors import UsageError
from cliploc.report.figures import Figure, figure, legend, plot
from cliploc.report.html import REPORT_TEMPLATES, count
from cliploc.report.tables import Cell, Table, counted, csv_text, to_markdown
from cliploc.report.task_folder import SettingResult, TaskRun, read_run, write_files

FILES = ("tables.csv", "tables.md", "names.csv", "report.html")
DRAFTS = "drafts"  # the folder of the drafts, beside these
NUMBERS = {  # key → title and meaning
    "untaught": (
        "untaught",
        "corrections (delete, draw, adjust) of 100 pictures that are left, as the model alone drew",
    ),
    "taught": ("taught", "the same with what the folder has learnt from itself, and from the reviewed pictures"),
    "saved": ("saved", "the difference on the same pictures, with its standard error"),
    "minutes": ("minutes", "estimated for the taught corrections, with the least and the greatest cost of a box"),
    "whole": ("whole folder", "corrections of 100 pictures, those that were reviewed first counted as they were then"),
}
CURVE = (
    "left", "untaught", "taught", "saved", "saved_error", "delete", "draw", "adjust", "minutes_low", "minutes_high",
    "untaught_delete", "untaught_draw", "untaught_adjust", "untaught_minutes_low", "untaught_minutes_high", "whole",
)  # fmt: skip
OF_NAME = ("untaught", "taught", "saved", "saved_error")
LINES = (("random", "untaught"), ("random", "taught"), ("suggested", "untaught"), ("suggested", "taught"))
MOST_DRAWN = 8  # settings with a figure


def write_labelling_report(folder: Path, *, pictures: bool = True) -> Path:  # noqa: ARG001 - it shows none
    """Writes report.html and the tables into a labelling benchmark's folder; see `write_report`."""

    def best(_: object, numbers: Mapping[str, Any]) -> float | None:  # fewest corrections before a review
        return None if numbers.get("taught") is None else -numbers["taught"]

    run = read_run(folder, LabellingManifest, lambda _: ("untaught", "taught", "saved"), best)
    _refuse_damaged(run)
    # Named by the folder: its format and split do not say whose pictures they are.
    title = f"Labelling: {Path(run.dataset['root']).name}, {count(run.dataset['samples'], 'picture')}"
    table, names = _numbers(run), _names(run)
    seconds = run.manifest["seconds"]
    low, high = seconds["draw"]
    facts = {
        "orders": f"random and suggested, {count(run.manifest['seeds'], 'seed')} each",
        "cost of a box": f"{low:g}–{high:g} s to draw, {seconds['change']:g} s to adjust or delete",
    }
    drawn = [setting for setting in run.settings if setting.numbers.get("curves")][:MOST_DRAWN]
    said = "the bars are a standard error of what is saved"
    page = REPORT_TEMPLATES.render(
        "labelling.html",
        title=title,
        about=run.facts({}, facts),
        table=table,
        numbers=list(NUMBERS.values()),
        curves=[(f"{setting.id}; {said}", _curve(setting, run.manifest["reviewed"])) for setting in drawn],
        legend=legend((i, f"{order}, {what}") for i, (order, what) in enumerate(LINES)),
        names=names,
        **run.ending(),
    )
    tables = [table] if names is None else [table, names]
    # A row for each setting and name, with unrounded numbers.
    of_names = [{"setting": setting.id, "name": name, **numbers} for setting, name, numbers in _of_names(run)]
    names_csv = csv_text(of_names or [dict.fromkeys(("setting", "name", "pictures", "boxes"))])
    return write_files(folder, (_csv(run), to_markdown(title, tables), names_csv, page), FILES)


def _refuse_damaged(run: TaskRun) -> None:
    """Refuses curves and numbers of names that do not have all of their numbers."""
    steps = run.manifest["reviewed"]
    of_name = {"pictures", "boxes", *(f"{key}_{step}" for key in OF_NAME for step in steps)}
    for setting in run.settings:
        curves = setting.numbers.get("curves") or {}
        whole = all(len(curve.get(key) or ()) == len(steps) for curve in curves.values() for key in CURVE)
        names = (setting.numbers.get("per_class") or {}).values()
        if (
            not whole
            or any(of_name - numbers.keys() for numbers in names)
            or (curves and "nothing" not in setting.numbers)
        ):
            raise UsageError(f"{run.folder} is damaged (the numbers of {setting.id}): run the benchmark again")


def number_text(value: float | None, error: float | None = None) -> str:
    """A number of corrections, with its standard error."""
    if value is None:
        return "–"
    return f"{value:.1f}" if error is None else f"{value:.1f} ± {error:.1f}"


def minutes_text(numbers: Mapping[str, Any], prefix: str) -> str:
    """Minutes with the least and the greatest cost of a box."""
    low, high = numbers.get(f"{prefix}minutes_low"), numbers.get(f"{prefix}minutes_high")
    return "–" if low is None or high is None else f"{low:.1f}–{high:.1f}"


def _steps(run: TaskRun, setting: SettingResult) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Order, number of reviewed pictures, and the numbers then."""
    for order, curve in (setting.numbers.get("curves") or {}).items():
        for i, step in enumerate(run.manifest["reviewed"]):
            yield order, step, {key: curve[key][i] for key in CURVE}


def _numbers(run: TaskRun) -> Table:
    columns = {
        "setting": "",
        "order": "of the reviewed pictures: random, or suggested: the least certain first",
        "reviewed": "number of pictures that were reviewed before",
        "left": "number of pictures that are left",
        **dict(NUMBERS.values()),
        "delete": "of the taught corrections",
        "draw": "of the taught corrections",
        "adjust": "of the taught corrections: drafts with an IoU of 0.5 to 0.7",
    }
    rows = [
        [
            Cell(setting.id),
            Cell(order),
            counted(step),
            counted(numbers["left"]),
            *(Cell(number_text(numbers[key]), numbers[key]) for key in ("untaught", "taught")),
            Cell(number_text(numbers["saved"], numbers["saved_error"]), numbers["saved"]),
            Cell(minutes_text(numbers, ""), numbers["minutes_low"]),
            *(Cell(number_text(numbers[key]), numbers[key]) for key in ("whole", "delete", "draw", "adjust")),
        ]
        for setting in run.settings
        for order, step, numbers in _steps(run, setting)
    ]
    notes = [
        f"{setting.id}, without drafts: {setting.numbers['nothing']:.1f} boxes to draw for 100 pictures, "
        f"{minutes_text(setting.numbers, 'nothing_')} minutes."
        for setting in run.settings
        if "nothing" in setting.numbers
    ]
    return Table("Corrections of 100 pictures", columns, {"": rows}, {"setting", "order"}, notes)


def _csv(run: TaskRun) -> str:
    """A row for each setting, order and number of reviewed pictures, with unrounded numbers."""
    rows: list[dict[str, object]] = [
        {**setting.named, "order": order, "reviewed": step, **numbers, "evaluated": setting.numbers["evaluated"]}
        for setting in run.settings
        for order, step, numbers in _steps(run, setting)
    ]
    return csv_text(rows or [dict.fromkeys(("setting", "model", "method", "order", "reviewed", *CURVE, "evaluated"))])


def _of_names(run: TaskRun) -> Iterator[tuple[SettingResult, str, Mapping[str, Any]]]:
    classes = run.dataset.get("classes") or []
    for setting in run.settings:
        for label, numbers in (setting.numbers.get("per_class") or {}).items():
            yield setting, classes[int(label)]["name"] if int(label) < len(classes) else label, numbers


def _names(run: TaskRun) -> Table | None:
    """A row for each setting and name; None for one name."""
    every = list(_of_names(run))
    if len(every) <= len(run.settings):
        return None
    last = run.manifest["reviewed"][-1]
    columns = {
        "setting": "",
        "name": "",
        "pictures": "with boxes of the name",
        "boxes": "true ones",
        **{
            f"{key}, {step} reviewed": "corrections of 100 pictures that are left, in random order"
            for step in dict.fromkeys((0, last))
            for key in ("untaught", "taught", "saved")
        },
    }
    rows = []
    for setting, name, numbers in every:
        row = [Cell(setting.id), Cell(name), *(counted(numbers[key]) for key in ("pictures", "boxes"))]
        for step in dict.fromkeys((0, last)):
            row += [Cell(number_text(value := numbers[f"{key}_{step}"]), value) for key in ("untaught", "taught")]
            saved, error = numbers[f"saved_{step}"], numbers[f"saved_error_{step}"]
            row.append(Cell(number_text(saved, error), saved))
        rows.append(row)
    return Table("Each name", columns, {"": rows}, {"setting", "name"})


def _curve(setting: SettingResult, steps: list[int]) -> Figure:
    """Draws the corrections that are left of 100 pictures, by the number of reviewed pictures."""
    curves = setting.numbers["curves"]
    there = [(i, order, what) for i, (order, what) in enumerate(LINES) if order in curves]

    def draw(axes: Any) -> None:
        for i, order, what in there:
            values = np.array(curves[order][what], np.float64)  # None is NaN
            errors = [error or 0 for error in curves[order]["saved_error"]]
            colour = plot(axes, i, steps, values, marked=True)
            if what == "taught":
                axes.errorbar(steps, values, errors, color=colour, linewidth=0, elinewidth=1, capsize=3)
        axes.set(ylim=(0, None), xlabel="reviewed pictures", ylabel="corrections of 100 pictures")

    said = "; ".join(
        f"{order}, {what}: "
        + ", ".join(f"{step} {number_text(value)}" for step, value in zip(steps, curves[order][what], strict=True))
        for _, order, what in there
    )
    return figure(draw, f"{setting.id}: corrections of 100 pictures after so many reviewed ones. {said}", (5.8, 4.0))
