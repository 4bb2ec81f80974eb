"""The benchmark's tables: every setting with all metrics."""

from cliploc.evaluate.metrics import all_numbers
from cliploc.evaluate.tasks.boxes.data import BenchmarkRun
from cliploc.evaluate.tasks.tables import (
    Cell,
    Table,
    counted,
    decimal,
    numbers_csv,
    percent,
)
from cliploc.evaluate.tasks.task_folder import SettingResult

WITHOUT_A_MODEL = (
    "Boxes without a model are fixed beforehand and the same for every picture and name: a method whose boxes are not "
    "better has only found the middle of the picture. Their Top-1 and Top-5 Loc use the model's classification."
)


def dataset_line(run: BenchmarkRun) -> str:
    """The dataset in a few words: "wsol val"."""
    subset = run.dataset.get("subset")
    return f"{run.dataset['name']} {run.dataset['split']}{f' ({subset})' if subset else ''}"


def every_number(run: BenchmarkRun) -> Table:
    """Every setting × every metric that any of them has."""
    keys = [key for key in all_numbers() if any(setting.number(key) is not None for setting in run.settings)]
    columns = {
        "setting": "",
        "τ": "of GT-known, Top-1 and Top-5 Loc, VL-Score's rule and mean best IoU; "
        "fixed: before these pictures were seen; oracle: chosen on them",
        **{all_numbers()[key].title: all_numbers()[key].about for key in keys},
        "best τ": "of MaxBoxAcc, chosen on these pictures",
        "evaluated": "",
        "failed": "",
    }
    rows = []
    for setting in run.ranked:
        numbers = [percent(setting.number(key), setting.interval(key)) for key in keys]
        best = decimal(setting.numbers.get("best_threshold"), 3)
        counts = (counted(setting.numbers["evaluated"]), counted(len(setting.numbers["failed"])))
        rows.append([Cell(setting.label), Cell(_tau(setting), setting.threshold), *numbers, best, *counts])
    notes = ["Percent, with 95 % intervals (bootstrap over pictures). The best by MaxBoxAcc first."]
    if any(setting.baseline for setting in run.settings):
        notes.append(WITHOUT_A_MODEL)
    return Table("All settings, all metrics", columns, rows, {"setting", "τ"}, notes)


def _tau(setting: SettingResult) -> str:
    if setting.threshold is None:
        return "each map's own"
    return f"{setting.threshold:.3g} ({'oracle' if setting.oracle else 'fixed'})"


def to_csv(run: BenchmarkRun) -> str:
    """The CSV: a row for each setting, with unrounded numbers."""
    taus = ("best_threshold", "threshold", "threshold_chosen_on_these_images")
    return numbers_csv(
        run, all_numbers(), (*taus, "images"), lambda setting: {"pretrained": setting.about.get("pretrained")}
    )
