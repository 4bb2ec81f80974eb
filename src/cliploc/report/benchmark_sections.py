"""The sections of the page that are computed from rows: thresholds, IoU, objects, classes, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cliploc.metrics import TAUS
from cliploc.report.benchmark_classes import class_bars, class_table, confusion, studied, studies
from cliploc.report.benchmark_data import MISSES, BenchmarkRun, SettingResult, details
from cliploc.report.benchmark_figures import (
    INSTANCES,
    QUARTILES,
    breakdown,
    iou_histogram,
    iou_shares,
    legend,
    tau_curves,
)
from cliploc.report.benchmark_gallery import GalleryPicture, Photographs, disputed, examples, gallery_picture
from cliploc.report.benchmark_tables import Cell, Table, percent
from cliploc.report.html import count

EACH = 10  # pictures of each kind
MOST_DRAWN = 8  # settings in one figure, and histograms
MOST_GALLERIES = 4
FORGIVING = 2.0  # percentage points of MaxBoxAcc; a τ this close to the best is about as good


@dataclass(frozen=True)
class Section:
    """A section of the page, rendered by the template `benchmark/ID.html`; `short` is the text of the link to it."""

    id: str
    short: str
    title: str
    data: Mapping[str, Any]


def sections(run: BenchmarkRun, settings: Sequence[SettingResult], photographs: Photographs) -> list[Section]:
    """The sections that have content."""
    if not run.rows["iou"].notna().any():
        return [Section("iou", "IoU", "How well boxes fit", {"histograms": []})]
    shown = list(settings[:MOST_DRAWN])
    left = {"shown": len(shown), "total": len(settings)}
    objects = "Hits and misses by size and number of objects"
    found = [
        Section("tau", "Thresholds", "Accuracy at every threshold", left | _tau(shown)),
        Section("iou", "IoU", "How well boxes fit", left | _iou(run, shown)),
        Section("objects", "Size, number", objects, left | _objects(run, shown)),
    ]
    if reasons := studied(run):
        ten = {
            "leader": settings[0].label,
            "studies": studies(run, shown, reasons, photographs),
            "confusions": confusion(run, settings, list(reasons)),
        }
        found.append(Section("ten", "Ten classes", "Ten classes in detail", ten))
    found.append(Section("classes", "Classes", "Class by class", left | _classes(run, shown)))
    found.append(Section("pictures", "Pictures", "Pictures", _pictures(run, settings, photographs)))
    return found


# --------------------------------------------------------------------------------------------------------- thresholds
def _tau(settings: Sequence[SettingResult]) -> dict[str, Any]:
    curves = [one for one in settings if one.curve is not None]
    columns = {
        "setting": "",
        "best τ": "",
        "MaxBoxAcc": "there, %",
        "own τ": "",
        "at own τ": "%",
        f"within {FORGIVING:g} points": "the range of τ around the best in which MaxBoxAcc is this close to the best",
    }
    rows = []
    for one in curves:
        assert one.curve is not None
        best = int(one.curve.argmax())
        near = one.curve >= one.curve[best] - FORGIVING
        start = best - int(near[: best + 1][::-1].argmin() or best + 1) + 1
        stop = best + int(near[best:].argmin() or len(near) - best) - 1
        own = None if one.threshold is None else one.curve[min(round(one.threshold * 1000), len(TAUS) - 1)]
        rows.append(
            [
                Cell(one.label),
                Cell(f"{TAUS[best]:.3f}", float(TAUS[best])),
                percent(float(one.curve[best])),
                Cell("–" if one.threshold is None else f"{one.threshold:.3f}", one.threshold),
                percent(None if own is None else float(own)),
                Cell(f"{TAUS[start]:.3f} – {TAUS[stop]:.3f}", float(TAUS[stop] - TAUS[start])),
            ]
        )
    table = Table("Thresholds", columns, {"": rows}, frozenset(columns) - {"setting"})
    return {"figure": tau_curves(curves), "legend": legend(curves), "table": table}


# ---------------------------------------------------------------------------------------------------------------- IoU
def _iou(run: BenchmarkRun, settings: Sequence[SettingResult]) -> dict[str, Any]:
    top = 5 * np.ceil(max(iou_shares(run, one).max() for one in settings) / 5 + 0.2)
    return {
        "histograms": [
            {
                "figure": iou_histogram(run, one, float(top)),
                "label": one.label,
                "median": run.of(one)["iou"].median(),
                "right": 100 * float(run.of(one)["hit"].mean()),
            }
            for one in settings
        ]
    }


# ------------------------------------------------------------------------------------------------- size and number
Counts = Mapping[str, Sequence[tuple[int, int]]]  # setting → (hits, pictures) of each group


def _objects(run: BenchmarkRun, settings: Sequence[SettingResult]) -> dict[str, Any]:
    shares = run.rows.drop_duplicates("sample")["area_share"].dropna().to_numpy(dtype=float)
    ends = np.quantile(shares, [0.25, 0.5, 0.75])
    size = _by(run, settings, lambda rows: np.searchsorted(ends, rows["area_share"].to_numpy(dtype=float)))
    number = _by(run, settings, lambda rows: rows["n_boxes"].to_numpy(dtype=int).clip(1, 4) - 1)
    return {
        "legend": legend(settings),
        "size": breakdown(settings, size, QUARTILES, "size of the object"),
        "cuts": ", ".join(f"{100 * end:.0f}" for end in ends),
        "number": breakdown(settings, number, INSTANCES, "number of true boxes"),
        "table": _count_table(settings, size, number),
        "kinds": KINDS_OF_BOXES,
        "misses": _misses(run, settings) if (run.rows["miss"] != "").any() else [],
    }


def _by(run: BenchmarkRun, settings: Sequence[SettingResult], group: Callable[[Any], Any], groups: int = 4) -> Counts:
    found = {}
    for one in settings:
        rows = run.of(one)
        places, hits = group(rows), rows["hit"].to_numpy(dtype=bool)
        found[one.id] = [(int(hits[places == i].sum()), int((places == i).sum())) for i in range(groups)]
    return found


def _count_table(settings: Sequence[SettingResult], size: Counts, number: Counts) -> Table:
    groups = [(name, size, i) for i, name in enumerate(QUARTILES)]
    groups += [(f"{name} {'box' if name == '1' else 'boxes'}", number, i) for i, name in enumerate(INSTANCES)]
    columns = {"setting": "", "box": "", **dict.fromkeys((name for name, _, _ in groups), "pictures")}
    rows = []
    for one in settings:
        for what in ("right", "wrong"):
            counts = [found[one.id][i] for _, found, i in groups]
            amounts = [hits if what == "right" else n - hits for hits, n in counts]
            rows.append([Cell(one.label), Cell(what), *[Cell(f"{amount:,}", amount) for amount in amounts]])
    title = "Hits and misses by size and number of objects"
    return Table(title, columns, {"": rows}, frozenset(columns) - {"setting", "box"})


KINDS_OF_BOXES = {"hit": ("right", "IoU of at least 0.5"), **MISSES}


def _misses(run: BenchmarkRun, settings: Sequence[SettingResult]) -> list[tuple[str, dict[str, float]]]:
    """For each setting its label and the percentages of pictures with right boxes and with each kind of error."""
    found = []
    for one in settings:
        rows = run.of(one)
        shares = {"hit": 100 * float(rows["hit"].mean())}
        shares |= {kind: 100 * float((rows["miss"] == kind).mean()) for kind in MISSES}
        found.append((one.label, {kind: share for kind, share in shares.items() if share > 0}))
    return found


# ------------------------------------------------------------------------------------------------------------ classes
def _classes(run: BenchmarkRun, settings: Sequence[SettingResult]) -> dict[str, Any]:
    present = run.rows.drop_duplicates("sample").groupby("label")["sample"].count()
    few = int((present <= 2).sum())
    words = [f"{len(present):,} classes, {count(int(present.sum()), 'sample')}."]
    if few > len(present) / 2:
        words.append(f"{few:,} of them have one or two: too few for reliable numbers.")
    return {
        "words": " ".join(words),
        "leader": settings[0].label,
        "bars": class_bars(run, settings[0]),
        "table": class_table(run, settings),
    }


# ----------------------------------------------------------------------------------------------------------- pictures
KINDS = {
    "best": "The highest IoU.",
    "borderline": "IoU nearest to 0.5, on either side.",
    "worst": "The lowest IoU; of equal ones, the largest objects.",
}


def _pictures(run: BenchmarkRun, settings: Sequence[SettingResult], photographs: Photographs) -> dict[str, Any]:
    shown, compared = settings[:MOST_GALLERIES], settings[:MOST_DRAWN]
    picks = {one.id: examples(run, one, EACH) for one in shown}
    argued = disputed(run, compared, EACH) if len(compared) > 1 else []
    wanted = {key for kinds in picks.values() for keys in kinds.values() for key in keys}
    full = details(run, wanted | {(one.id, sample) for one in compared for sample in argued})

    def name(key: tuple[str, str]) -> str:
        return run.class_name(int(full[key]["label"]))

    def show(one: SettingResult, sample: str, title: str) -> GalleryPicture:
        return gallery_picture(run, full[one.id, sample], one, photographs, title)

    return {
        "folder": run.folder,
        "galleries": [
            (
                one.label,
                [
                    (kind.capitalize(), KINDS[kind], [show(one, key[1], name(key)) for key in keys])
                    for kind, keys in picks[one.id].items()
                ],
            )
            for one in shown
        ],
        "disputed": [
            (name((compared[0].id, sample)), [show(one, sample, one.label) for one in compared]) for sample in argued
        ],
    }
