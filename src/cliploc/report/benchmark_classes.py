"""The benchmark by class: a table of all classes, and details of ten."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cliploc.report.benchmark_data import BenchmarkRun, details, wilson
from cliploc.report.benchmark_gallery import Photographs, gallery_picture
from cliploc.report.tables import Cell, Table, decimal, percent
from cliploc.report.task_folder import SettingResult

SHOWN = 12  # best and worst classes


# -------------------------------------------------------------------------------------------------------- all classes
def class_bars(run: BenchmarkRun, setting: SettingResult) -> dict[str, list[dict[str, Any]]]:
    """Heading → bars: the best and worst classes of a setting, ranked by the cautious end of their intervals.

    A class without a miss is not among the worst, however few classes there are, nor one without a hit among the best.
    """
    bars: list[dict[str, Any]] = []
    for label, row in run.of(setting).groupby("label")["hit"].agg(["sum", "count"]).sort_index().iterrows():
        hits, n = map(int, row)
        low, high = wilson(hits, n)
        bars.append({"name": run.class_name(int(label)), "hits": hits, "n": n, "low": low, "high": high})
    if len(bars) <= SHOWN:
        return {"Best": sorted(bars, key=lambda bar: -bar["low"])}
    best = sorted((bar for bar in bars if bar["hits"]), key=lambda bar: -bar["low"])[:SHOWN]
    worst = sorted((bar for bar in bars if bar["hits"] < bar["n"]), key=lambda bar: bar["high"])[:SHOWN]
    return {heading: found for heading, found in (("Best", best), ("Worst", worst)) if found}


def class_table(run: BenchmarkRun, settings: Sequence[SettingResult]) -> Table:
    """A table of GT-known Loc for every class and setting, at the setting's τ."""
    pictures = run.rows.drop_duplicates(["sample"]).groupby("label")["sample"].count()
    columns = {"class": "", "id": "", "pictures": "", **{one.label: "GT-known Loc, %" for one in settings}}
    rows = []
    for label in sorted(int(one) for one in pictures.index):
        cells = [Cell(run.class_name(label)), Cell(run.wnid(label) or str(label))]
        cells.append(Cell(str(pictures[label]), int(pictures[label])))
        for one in settings:
            numbers = (one.numbers.get("per_class") or {}).get(str(label)) or {}
            cells.append(decimal(numbers.get("gt_known"), 1))
        rows.append(cells)
    return Table("Every class and every setting", columns, {"": rows}, {"class", "id"})


# -------------------------------------------------------------------------------------------------------- ten classes
def studied(run: BenchmarkRun) -> Mapping[int, str]:
    """Label → reason why its details are shown, for the classes with a reason in the manifest and with pictures."""
    reasons: Mapping[str, str] = run.dataset.get("reasons") or {}
    labels = {str(one.get("wnid")): i for i, one in enumerate(run.dataset["classes"])}
    present = set(run.rows["label"].unique().tolist())
    return {labels[wnid]: reason for wnid, reason in reasons.items() if labels.get(wnid) in present}


def studies(
    run: BenchmarkRun, settings: Sequence[SettingResult], reasons: Mapping[int, str], photographs: Photographs
) -> list[dict[str, Any]]:
    """The details of each class that has a reason: the reason, numbers per setting, three pictures."""
    leader = settings[0]
    rows = run.of(leader)
    keys = {label: _three(rows[rows["label"] == label]) for label in reasons}
    full = details(run, {(leader.id, sample) for samples in keys.values() for sample in samples})
    return [
        {
            "name": run.class_name(label),
            "wnid": run.wnid(label),
            "pictures": run.rows[run.rows["label"] == label]["sample"].nunique(),
            "reason": reason,
            "table": _numbers(run, settings, label),
            "shown": [gallery_picture(run, full[leader.id, sample], leader, photographs) for sample in keys[label]],
        }
        for label, reason in reasons.items()
    ]


def _three(rows: Any) -> list[str]:
    """The best, the middle and the worst picture of a class."""
    ordered = rows[rows["iou"].notna()].sort_values(["iou", "sample"], ascending=[False, True])["sample"].tolist()
    places = sorted({0, (len(ordered) - 1) // 2, len(ordered) - 1}) if ordered else []
    return [ordered[place] for place in places]


def _numbers(run: BenchmarkRun, settings: Sequence[SettingResult], label: int) -> Table:
    columns = {
        "setting": "",
        "GT-known Loc": "at the setting's τ",
        "MaxBoxAcc": "at the τ best for all pictures of the run",
        "mean IoU": "of the largest contour's box",
        "Top-1 class": "",
        "Top-1 Loc": "",
        "pointing": "",
    }
    rows = []
    for one in settings:
        mine = run.of(one)
        mine = mine[mine["label"] == label]
        if not len(mine):
            rows.append([Cell(one.label), *[Cell("–")] * (len(columns) - 1)])
            continue
        first = (mine["predicted"] == label).to_numpy()
        hit = mine["hit"].to_numpy(dtype=bool)
        stored = (one.numbers.get("per_class") or {}).get(str(label)) or {}
        iou = float(mine["iou"].mean())
        rows.append(
            [
                Cell(one.label),
                percent(stored.get("gt_known", 100 * float(hit.mean()))),
                percent(stored.get("max_box_acc")),
                decimal(iou, 2),
                percent(100 * float(first.mean())),
                percent(100 * float((first & hit).mean())),
                percent(100 * float(mine["pointing_hit"].mean())),
            ]
        )
    return Table(f"Numbers for {run.class_name(label)}", columns, {"": rows}, {"setting"})


def confusion(run: BenchmarkRun, settings: Sequence[SettingResult], labels: Sequence[int]) -> list[dict[str, Any]]:
    """Each classifier's confusion matrix of these labels, titled by its settings; `rows`: counts, shares, others."""
    groups: dict[bytes, list[SettingResult]] = {}
    for one in settings:
        rows = run.of(one).sort_values("sample")
        if len(rows) and (rows["predicted"] >= 0).any():
            groups.setdefault(rows["predicted"].to_numpy(dtype=np.int64).tobytes(), []).append(one)
    return [
        {
            "title": ", ".join(one.label for one in same) if len(groups) > 1 else "All settings predict alike",
            "names": [run.class_name(label) for label in labels],
            "rows": [_taken_for(run, same[0], label, labels) for label in labels],
        }
        for same in groups.values()
    ]


def _taken_for(
    run: BenchmarkRun, setting: SettingResult, label: int, labels: Sequence[int]
) -> tuple[list[tuple[int, float]], tuple[int, float], str]:
    rows = run.of(setting)
    predicted = rows[rows["label"] == label]["predicted"]
    total = max(len(predicted), 1)
    inside = [int((predicted == other).sum()) for other in labels]
    others = predicted[~predicted.isin(list(labels))].value_counts()
    others = others.sort_index().sort_values(ascending=False, kind="stable")
    most = ", ".join(f"{run.class_name(int(one))} {n}" for one, n in others.head(3).items())
    outside = int(others.sum())
    return [(one, one / total) for one in inside], (outside, outside / total), most
