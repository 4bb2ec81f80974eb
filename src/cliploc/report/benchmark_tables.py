"""The benchmark's tables: comparison with published numbers, and all metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

from cliploc.metrics import all_numbers
from cliploc.report.benchmark_data import BenchmarkRun, in_words, is_imagenet
from cliploc.report.tables import CHART, Cell, Marks, Table, counted, csv_text, decimal, percent
from cliploc.report.task_folder import SettingResult, published, with_ends

NOT_COMPARABLE = (
    "Numbers of different models, splits or pictures are not comparable with each other: the published rows are only "
    "for orientation. † marks VL-Score's own rule, which counts a picture as right when any predicted box "
    "fits any true box: never compare it with MaxBoxAcc, which takes one box."
)
WITHOUT_A_MODEL = (
    "Boxes without a model are fixed beforehand and the same for every picture and name: a method whose boxes are not "
    "better has only found the middle of the picture. Their Top-1 and Top-5 Loc use the model's classification."
)
PUBLISHED = "published.json"


# ------------------------------------------------------------------------------------------------------ the published
def learnt_labels(setting: SettingResult) -> str:
    """The reason why a setting is not zero-shot on ImageNet; "" if it is."""
    if setting.about.get("head"):
        return "its head learnt labels of a training set"
    return str(published(PUBLISHED)["learnt_imagenet_labels"].get(setting.about.get("model"), ""))


def comparison(run: BenchmarkRun, most: int = 12) -> Table:
    """The table of our numbers and published ones; zero-shot settings apart from those trained on ImageNet's labels."""
    columns = {
        "method": "",
        CHART: "a dot: GT-known Loc, with its interval; a ring: at the best τ, an oracle; a triangle: VL-Score's rule",
        "GT-known Loc": "the largest contour's box has IoU ≥ 0.5 with any true box, at the τ beside it",
        "τ": "fixed: before these pictures were seen; oracle: chosen on them",
        "at the best τ": "GT-known Loc as an oracle, τ chosen on these same pictures: MaxBoxAcc",
        "best τ": "of the column before",
        "Top-1 Loc": "at the τ of GT-known Loc",
        "Top-5 Loc": "at the τ of GT-known Loc",
        "VL-Score's rule": all_numbers()["vl_score_rule"].about,
        "pictures": "",
    }
    chosen = [setting for setting in run.ranked if not setting.baseline][:most]
    baselines = [setting for setting in run.ranked if setting.baseline]
    if not is_imagenet(run):
        groups: dict[str, Sequence[Sequence[Cell]]] = (
            {"": [_ours(run, setting) for setting in chosen]} if chosen else {}
        )
        notes = ["Published numbers are available for ILSVRC only."]
    else:
        groups, notes = {}, [NOT_COMPARABLE]
        for heading, learnt in (("zero-shot", False), ("trained on ImageNet's image labels", True)):
            if mine := [_ours(run, setting) for setting in chosen if bool(learnt_labels(setting)) == learnt]:
                groups[f"This run, {heading}"] = mine
            groups[f"Published, {heading}"] = [
                _theirs(row) for row in published(PUBLISHED)["rows"] if row["trained"] == learnt
            ]
        for reason in sorted(
            {f"{setting.about.get('model')}: {why}" for setting in chosen if (why := learnt_labels(setting))}
        ):
            notes.append(f"{reason}: not zero-shot on ILSVRC.")
    if baselines:
        groups["This run, boxes without a model"] = [_ours(run, setting) for setting in baselines]
        notes.append(WITHOUT_A_MODEL)
    if len(run.settings) > len(chosen) + len(baselines):
        notes.append(f"The {most} best of this run's {len(run.settings)} settings; all are in the next table.")
    title = "Beside the published numbers" if is_imagenet(run) else "The settings side by side"
    return Table(title, columns, groups, {"method", CHART, "τ", "pictures"}, notes)


def _ours(run: BenchmarkRun, setting: SettingResult) -> list[Cell]:
    known, best = setting.number("gt_known"), setting.number("max_box_acc")
    ends, evaluated = setting.interval("gt_known"), setting.numbers.get("evaluated")
    fixed = None if setting.oracle else known
    # Where all settings share the model, labels do not name it.
    shared = len({in_words(other.about.get("model")) for other in run.settings}) == 1 and setting.about.get("model")
    return [
        Cell(f"{setting.label}, {in_words(setting.about['model'])}" if shared else setting.label),
        Cell("", fixed, marks=Marks(fixed, ends, best, setting.number("vl_score_rule"))),
        percent(fixed, None if setting.oracle else ends),
        Cell("–" if setting.oracle else _tau(setting)),
        percent(best, setting.interval("max_box_acc")),
        decimal(setting.numbers.get("best_threshold"), 3),
        percent(setting.number("top1_loc"), setting.interval("top1_loc")),
        percent(setting.number("top5_loc"), setting.interval("top5_loc")),
        percent(setting.number("vl_score_rule"), setting.interval("vl_score_rule")),
        Cell("none" if not evaluated else f"{evaluated:,} of {dataset_line(run)}"),
    ]


def _tau(setting: SettingResult) -> str:
    if setting.threshold is None:
        return "each map's own"
    return f"{setting.threshold:.3g} ({'oracle' if setting.oracle else 'fixed'})"


def _theirs(row: Mapping[str, Any]) -> list[Cell]:
    lenient = row["rule"] == "vl_score"
    mark = " †" if lenient else ""
    known, top1, top5 = (_range(row[key], mark) for key in ("gt_known", "top1_loc", "top5_loc"))
    tau = "not given" if row["threshold"] is None else f"{row['threshold']:.2f}"
    how = {True: " (oracle)", False: " (fixed)", None: ""}[row["oracle"]]
    data = published(PUBLISHED)["data"] + (f", {row['note']}" if row.get("note") else "")
    dots = Marks(lenient=known.value) if lenient else Marks(fixed=known.value)
    return [
        Cell(f"{row['method']}, {row['model']}", note=row["cite"]),
        Cell("", known.value, marks=dots),
        Cell("–") if lenient else known,
        Cell(tau + how),
        Cell("–"),
        Cell("–"),
        top1,
        top5,
        known if lenient else Cell("–"),
        Cell(data),
    ]


def _range(value: float | Sequence[float] | None, mark: str) -> Cell:
    if value is None:
        return Cell("–")
    low, high = (value, value) if isinstance(value, int | float) else (min(value), max(value))
    return Cell((f"{low:.2f}" if low == high else f"{low:.2f}–{high:.2f}") + mark, high)


def dataset_line(run: BenchmarkRun) -> str:
    """The dataset in a few words: "wsol val"."""
    subset = run.dataset.get("subset")
    return f"{run.dataset['name']} {run.dataset['split']}{f' ({subset})' if subset else ''}"


# ------------------------------------------------------------------------------------------------------- all numbers
def every_number(run: BenchmarkRun) -> Table:
    """Every setting × every metric that any of them has."""
    keys = [key for key in all_numbers() if any(setting.number(key) is not None for setting in run.settings)]
    columns = {
        "setting": "",
        **{all_numbers()[key].title: all_numbers()[key].about for key in keys},
        "best τ": "of MaxBoxAcc, chosen on these pictures",
        "τ": "of GT-known, Top-1 and Top-5 Loc, VL-Score's rule and mean best IoU",
        "evaluated": "",
        "failed": "",
    }
    rows = []
    for setting in run.ranked:
        numbers = [percent(setting.number(key), setting.interval(key)) for key in keys]
        taus = (decimal(setting.numbers.get("best_threshold"), 3), Cell(_tau(setting), setting.threshold))
        counts = (counted(setting.numbers["evaluated"]), counted(len(setting.numbers["failed"])))
        rows.append([Cell(setting.label), *numbers, *taus, *counts])
    notes = ["Percent, with 95 % intervals (bootstrap over pictures). The best by MaxBoxAcc first."]
    return Table("All settings, all metrics", columns, {"": rows}, {"setting", "τ"}, notes)


def to_csv(run: BenchmarkRun) -> str:
    """The CSV: a row for each setting of this run and each published row, with unrounded numbers."""
    rows: list[dict[str, Any]] = []
    for setting in run.settings:
        row: dict[str, Any] = {
            "kind": "this run",
            "setting": setting.id,
            "model": setting.about.get("model"),
            "pretrained": setting.about.get("pretrained"),
            "method": setting.about.get("method"),
            "trained_on_imagenet_labels": bool(learnt_labels(setting)),
            "dataset": run.dataset["name"],
            "split": run.dataset["split"],
        }
        facts = ("best_threshold", "threshold", "threshold_chosen_on_these_images", "images", "evaluated")
        row |= setting.columns(all_numbers()) | {key: setting.numbers.get(key) for key in facts}
        rows.append({**row, "failed": len(setting.numbers["failed"]), "source": "this run"})
    for other in published(PUBLISHED)["rows"] if is_imagenet(run) else ():
        lenient = other["rule"] == "vl_score"
        rows.append(
            {
                "kind": "published",
                "setting": f"{other['method']}, {other['model']}",
                "model": other["model"],
                "method": other["method"],
                "trained_on_imagenet_labels": other["trained"],
                "dataset": published(PUBLISHED)["data"],
                "vl_score_rule" if lenient else "gt_known": other["gt_known"],
                **_ends("top1_loc", other["top1_loc"]),
                **_ends("top5_loc", other["top5_loc"]),
                "threshold": other["threshold"],
                "threshold_chosen_on_these_images": other["oracle"],
                "source": published(PUBLISHED)["sources"][other["cite"]]
                + (" (Top-1 and Top-5 Loc by VL-Score's rule)" if lenient else ""),
            }
        )
    return csv_text(rows)


def _ends(key: str, value: float | Sequence[float] | None) -> dict[str, object]:
    """A published number as columns; a range becomes its middle and ends."""
    if value is None or isinstance(value, int | float):
        return {key: value}
    return with_ends(key, round(sum(value) / len(value), 2), (min(value), max(value)))
