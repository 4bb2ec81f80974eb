"""Writes a benchmark's report as one HTML page, and its tables as CSV and Markdown; no model is loaded."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cliploc.draw.html import LIGHT, count
from cliploc.errors import UsageError
from cliploc.evaluate.metrics import TAUS
from cliploc.evaluate.tasks.boxes import table as tables
from cliploc.evaluate.tasks.boxes.data import MISSES, BenchmarkRun, in_words, read_run, wilson
from cliploc.evaluate.tasks.boxes.gallery import Photographs, confusion, galleries, studies
from cliploc.evaluate.tasks.faithfulness.page import write_faithfulness_report
from cliploc.evaluate.tasks.figures import Figure, figure, legend, look, plot
from cliploc.evaluate.tasks.presence.page import write_presence_report
from cliploc.evaluate.tasks.segmentation.page import write_segmentation_report
from cliploc.evaluate.tasks.tables import (
    Cell,
    Table,
    counted,
    decimal,
    percent,
    to_markdown,
)
from cliploc.evaluate.tasks.task_folder import Floats, SettingResult, worth, write_files
from cliploc.evaluate.tasks.templates import TEMPLATES
from cliploc.runs.evaluation import open_run

MOST_DRAWN = 8  # settings in one figure, and histograms
FORGIVING = 2.0  # percentage points of MaxBoxAcc; a τ this close to the best is about as good
SHOWN_CLASSES = 12  # best and worst ones
QUARTILES = ("smallest quarter", "second", "third", "largest quarter")
INSTANCES = ("1", "2", "3", "4 and more")


@dataclass(frozen=True)
class Section:
    """A section of the page, rendered by the template `benchmark/ID.html`; `short` is the text of the link to it."""

    id: str
    short: str
    title: str
    data: Mapping[str, Any]


def write_report(out_folder: str | os.PathLike[str], *, pictures: bool = True) -> Path:
    """Writes any benchmark's report into its folder, the same bytes each time; `pictures`: with photographs."""
    folder = Path(out_folder)
    of_task = {
        "segmentation": write_segmentation_report,
        "faithfulness": write_faithfulness_report,
        "presence": write_presence_report,
    }
    with open_run(folder) as opened:
        kind = opened["manifest"]["kind"]
    if write := of_task.get(kind):
        return write(folder, pictures=pictures)
    if kind != "benchmark":
        raise UsageError(f"expected the folder of a benchmark, got one of {kind}, {folder}: give a benchmark's --out")
    run = read_run(folder)
    numbers = tables.every_number(run)
    texts = (
        tables.to_csv(run),
        to_markdown(f"cliploc benchmark: {tables.dataset_line(run)}", [numbers]),
        page(run, numbers, pictures),
    )
    return write_files(run.folder, texts)


def page(run: BenchmarkRun, numbers: Table, pictures: bool) -> str:
    """The whole page as HTML."""
    data, photographs = run.dataset, Photographs(Path(str(run.dataset.get("root", "."))), pictures, run.unshown)
    facts = {
        "dataset": f"{data['name']} {data['split']}",
        "role": {"tune": "may choose τ", "report": "may only be reported on"}.get(str(data.get("role")), ""),
        "subset": data.get("subset") or "",
        "samples": f"{run.rows['sample'].nunique():,}",
        "settings": f"{len(run.settings):,}",
        "models": in_words(sorted({str(setting.about.get("model")) for setting in run.settings})),
        "started": " ".join(str((run.manifest.get("sessions") or [{}])[0].get("started", ""))[:16].split("T")),
        "cliploc": str(run.manifest.get("cliploc_version") or ""),
    }
    evaluated = [setting for setting in run.ranked if len(run.of(setting))]
    headline: dict[str, Any] | None = None
    if evaluated:
        best, *others = evaluated
        fixed = [setting for setting in evaluated if not setting.oracle and setting.number("gt_known") is not None]
        ends = best.interval("max_box_acc")
        alike = [
            setting for setting in others if ends and (other := setting.interval("max_box_acc")) and other[1] > ends[0]
        ]
        headline = {
            "best": best if best.number("max_box_acc") is not None else None,
            "fixed": max(fixed, key=lambda setting: (worth(setting.number("gt_known")), -setting.index))
            if fixed
            else None,
            "alike": len(alike),  # settings whose interval overlaps with the best one's
        }
    parts = [
        Section("numbers", "All numbers", numbers.title, {"table": numbers}),
        *(sections(run, evaluated, photographs) if evaluated else []),
    ]
    return TEMPLATES.render(
        "benchmark.html",
        title=f"Benchmark: {tables.dataset_line(run)}",
        about={key: value for key, value in facts.items() if value},
        headline=headline,
        parts=parts,
        photographs=photographs,
        **run.ending(),
    )


# --------------------------------------------------------------------------------------------------- sections from rows
def sections(run: BenchmarkRun, settings: Sequence[SettingResult], photographs: Photographs) -> list[Section]:
    """The sections that have content."""
    if not run.rows["iou"].notna().any():
        return [Section("iou", "IoU", "How well boxes fit", {"histograms": []})]
    shown = list(settings[:MOST_DRAWN])
    left = {"shown": len(shown), "total": len(settings)}
    objects = "Hits and misses by size and number of objects"
    parts = [
        Section("tau", "Thresholds", "Accuracy at every threshold", left | _thresholds(shown)),
        Section("iou", "IoU", "How well boxes fit", left | _iou(run, shown)),
        Section("objects", "Size, number", objects, left | _objects(run, shown, objects)),
    ]
    # The classes with a reason in the manifest and with pictures: label → reason why its details are shown.
    reasons: Mapping[str, str] = run.dataset.get("reasons") or {}
    labels = {str(entry.get("wnid")): label for label, entry in enumerate(run.dataset["classes"])}
    present = set(run.rows["label"].unique().tolist())
    studied = {labels[wnid]: reason for wnid, reason in reasons.items() if labels.get(wnid) in present}
    if studied:
        ten = {
            "leader": settings[0].label,
            "studies": studies(run, shown, studied, photographs),
            "confusions": confusion(run, settings, list(studied)),
        }
        parts.append(Section("ten", "Ten classes", "Ten classes in detail", ten))
    parts.append(Section("classes", "Classes", "Class by class", left | _classes(run, shown)))
    parts.append(Section("pictures", "Pictures", "Pictures", galleries(run, settings, shown, photographs)))
    return parts


def _thresholds(settings: Sequence[SettingResult]) -> dict[str, Any]:
    """MaxBoxAcc over τ: a dot marks the best τ of each line, a ring the setting's own τ; and a table."""
    curves = [(setting, setting.curve) for setting in settings if setting.curve is not None]
    columns = {
        "setting": "",
        "best τ": "",
        "MaxBoxAcc": "there, %",
        "own τ": "",
        "at own τ": "%",
        f"within {FORGIVING:g} points": "the range of τ around the best in which MaxBoxAcc is this close to the best",
    }
    rows, said = [], []
    for setting, curve in curves:
        best = int(curve.argmax())
        near = curve >= curve[best] - FORGIVING
        start = best - int(near[: best + 1][::-1].argmin() or best + 1) + 1
        stop = best + int(near[best:].argmin() or len(near) - best) - 1
        own = None if setting.threshold is None else setting.number("gt_known")
        within = Cell(f"{TAUS[start]:.3f} – {TAUS[stop]:.3f}", float(TAUS[stop] - TAUS[start]))
        numbers = (
            decimal(float(TAUS[best]), 3),
            percent(float(curve[best])),
            decimal(setting.threshold, 3),
            percent(own),
        )
        rows.append([Cell(setting.label), *numbers, within])
        said.append(f"{setting.label}: {curve[best]:.1f} % at {TAUS[best]:.3f}")

    def draw(axes: Any) -> None:
        for setting, curve in curves:
            colour, best = plot(axes, setting.index, TAUS, curve), int(curve.argmax())
            axes.plot(TAUS[best], curve[best], "o", color=colour, markersize=6)
            if setting.threshold is not None and not setting.oracle:
                own = setting.number("gt_known")
                axes.plot(
                    setting.threshold, own, "o", color=colour, markersize=9, fillstyle="none", markeredgewidth=1.6
                )
        axes.set(xlim=(0, 1), ylim=(0, None), xlabel="threshold τ, share of the map's maximum", ylabel="MaxBoxAcc, %")

    return {
        "figure": figure(draw, f"MaxBoxAcc at every threshold. Best: {'; '.join(said)}", (5.8, 4.0)),
        "legend": legend((setting.index, setting.label) for setting, _ in curves),
        "table": Table("Thresholds", columns, rows, {"setting"}),
    }


def _iou(run: BenchmarkRun, settings: Sequence[SettingResult]) -> dict[str, Any]:
    """IoU of the largest contour's box at each setting's τ: histograms, right ones filled, wrong ones hatched."""
    shares: dict[str, Floats] = {}  # setting → percentage of pictures in each of 20 equal ranges of IoU, [20]
    for setting in settings:
        ious = run.of(setting)["iou"].to_numpy(dtype=float)
        counts = np.histogram(ious[np.isfinite(ious)], bins=np.linspace(0, 1, 21))[0]
        shares[setting.id] = 100 * counts / max(counts.sum(), 1)
    top = float(5 * np.ceil(max(own.max() for own in shares.values()) / 5 + 0.2))  # of the axis that all share

    def draw(setting: SettingResult, axes: Any) -> None:
        colour, _, _ = look(setting.index)
        for i, share in enumerate(shares[setting.id]):
            right = i >= 10
            axes.bar(
                (i + 0.5) / 20, share, 0.042, color=colour if right else "none", edgecolor=colour,
                hatch=None if right else "////", linewidth=0.8,
            )  # fmt: skip
        axes.axvline(0.5, color=LIGHT["soft"], linewidth=1, dashes=(4, 3))
        axes.set(xlim=(0, 1), ylim=(0, top), xlabel="IoU", ylabel="pictures, %")

    histograms = []
    for setting in settings:
        said = f"{setting.label}: {shares[setting.id][10:].sum():.1f} % of pictures have IoU ≥ 0.5"
        histograms.append(
            {
                "figure": figure(partial(draw, setting), said, (4.4, 2.7)),
                "label": setting.label,
                "median": run.of(setting)["iou"].median(),
                "right": 100 * float(run.of(setting)["hit"].mean()),
            }
        )
    return {"histograms": histograms}


def _objects(run: BenchmarkRun, settings: Sequence[SettingResult], title: str) -> dict[str, Any]:
    """Right boxes by size and number of objects, as figures and counts, and how the others are wrong."""
    shares = run.rows.drop_duplicates("sample")["area_share"].dropna().to_numpy(dtype=float)
    ends = np.quantile(shares, [0.25, 0.5, 0.75])
    size: dict[str, list[tuple[int, int]]] = {}  # setting → (hits, pictures) of each of four groups
    number: dict[str, list[tuple[int, int]]] = {}
    misses = []  # of each setting, its label and the percentages of right boxes and of each kind of error
    for of_setting in settings:
        rows = run.of(of_setting)
        hits = rows["hit"].to_numpy(dtype=bool)
        by_size = np.searchsorted(ends, rows["area_share"].to_numpy(dtype=float))
        by_number = rows["n_boxes"].to_numpy(dtype=int).clip(1, 4) - 1
        for counts_of, places in ((size, by_size), (number, by_number)):
            counts_of[of_setting.id] = [(int(hits[places == i].sum()), int((places == i).sum())) for i in range(4)]
        kinds = {kind: 100 * float((rows["miss"] == kind).mean()) for kind in MISSES}
        kinds = {"hit": 100 * float(rows["hit"].mean()), **kinds}
        misses.append((of_setting.label, {kind: share for kind, share in kinds.items() if share > 0}))
    groups = [(name, size, i) for i, name in enumerate(QUARTILES)]
    groups += [(f"{name} {'box' if name == '1' else 'boxes'}", number, i) for i, name in enumerate(INSTANCES)]
    columns = {"setting": "", "box": "", **dict.fromkeys((name for name, _, _ in groups), "pictures")}
    cells = []
    for of_setting in settings:
        counts = [counts_of[of_setting.id][i] for _, counts_of, i in groups]
        cells.append([Cell(of_setting.label), Cell("right"), *(counted(hits) for hits, _ in counts)])
        cells.append([Cell(of_setting.label), Cell("wrong"), *(counted(n - hits) for hits, n in counts)])
    return {
        "legend": legend((setting.index, setting.label) for setting in settings),
        "size": _breakdown(settings, size, QUARTILES, "size of the object"),
        "cuts": ", ".join(f"{100 * end:.0f}" for end in ends),
        "number": _breakdown(settings, number, INSTANCES, "number of true boxes"),
        "table": Table(title, columns, cells, {"setting", "box"}),
        "kinds": {"hit": ("right", "IoU of at least 0.5"), **MISSES},
        "misses": misses if (run.rows["miss"] != "").any() else [],
    }


def _breakdown(
    settings: Sequence[SettingResult],
    counts_of: Mapping[str, Sequence[tuple[int, int]]],
    names: Sequence[str],
    what: str,
) -> Figure:
    """Draws the share of hits in groups of pictures, with 95 % intervals."""

    def draw(axes: Any) -> None:
        for place, setting in enumerate(settings):
            points = [(i, h, n) for i, (h, n) in enumerate(counts_of[setting.id]) if n]
            # Side by side, so that the intervals do not overlap.
            x = [i + 0.04 * (place - (len(settings) - 1) / 2) for i, _, _ in points]
            y = np.array([100 * h / n for _, h, n in points])
            ends = np.array([wilson(h, n) for _, h, n in points]).reshape(-1, 2)
            colour = plot(axes, setting.index, x, y, marked=True)
            axes.vlines(x, ends[:, 0], ends[:, 1], color=colour, linewidth=1, alpha=0.7)
        axes.set_xticks(range(len(names)), [name.replace(" quarter", "\nquarter") for name in names])
        axes.set(xlim=(-0.4, len(names) - 0.6), ylim=(-3, 103), xlabel=what, ylabel="right boxes, %")

    shares = "; ".join(
        f"{setting.label}: "
        + ", ".join(f"{name} {h} of {n}" for name, (h, n) in zip(names, counts_of[setting.id], strict=True))
        for setting in settings
    )
    return figure(draw, f"Right boxes by {what}. {shares}", (5.2, 3.7))


def _classes(run: BenchmarkRun, settings: Sequence[SettingResult]) -> dict[str, Any]:
    """The best and worst classes, and GT-known Loc for every class and setting, at the setting's τ."""
    pictures = run.rows.drop_duplicates("sample").groupby("label")["sample"].count()
    words = [f"{len(pictures):,} classes, {count(int(pictures.sum()), 'sample')}."]
    few = int((pictures <= 2).sum())
    if few > len(pictures) / 2:
        words.append(f"{few:,} of them have one or two: too few for reliable numbers.")
    columns = {"class": "", "id": "", "pictures": "", **{setting.label: "GT-known Loc, %" for setting in settings}}
    rows = []
    for label in sorted(int(number) for number in pictures.index):
        cells = [Cell(run.class_name(label)), Cell(run.wnid(label) or str(label))]
        cells.append(Cell(str(pictures[label]), int(pictures[label])))
        for setting in settings:
            numbers = (setting.numbers.get("per_class") or {}).get(str(label)) or {}
            cells.append(decimal(numbers.get("gt_known"), 1))
        rows.append(cells)
    return {
        "words": " ".join(words),
        "leader": settings[0].label,
        "bars": class_bars(run, settings[0]),
        "table": Table("Every class and every setting", columns, rows, {"class", "id"}),
    }


def class_bars(run: BenchmarkRun, setting: SettingResult) -> dict[str, list[dict[str, Any]]]:
    """Heading → bars: the best and worst classes of a setting, ranked by the cautious end of their intervals."""
    bars: list[dict[str, Any]] = []
    for label, row in run.of(setting).groupby("label")["hit"].agg(["sum", "count"]).sort_index().iterrows():
        hits, n = map(int, row)
        low, high = wilson(hits, n)
        bars.append({"name": run.class_name(int(label)), "hits": hits, "n": n, "low": low, "high": high})
    if len(bars) <= SHOWN_CLASSES:
        return {"Best": sorted(bars, key=lambda bar: -bar["low"])}
    # However few classes there are, one without a hit is not among the best, nor one without a miss among the worst.
    best = sorted((bar for bar in bars if bar["hits"]), key=lambda bar: -bar["low"])[:SHOWN_CLASSES]
    worst = sorted((bar for bar in bars if bar["hits"] < bar["n"]), key=lambda bar: bar["high"])[:SHOWN_CLASSES]
    return {heading: bars for heading, bars in (("Best", best), ("Worst", worst)) if bars}
