"""Writes a benchmark's report as one HTML page, and its tables as CSV, Markdown and LaTeX; no model is loaded."""

import json
import os
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cliploc.metrics import TAUS
from cliploc.report import benchmark_tables as tables
from cliploc.report.benchmark_classes import class_bars, class_table, confusion, studied, studies
from cliploc.report.benchmark_data import MISSES, BenchmarkRun, details, in_words, is_imagenet, read_run
from cliploc.report.benchmark_figures import (
    INSTANCES,
    QUARTILES,
    breakdown,
    iou_histogram,
    iou_shares,
    tau_curves,
)
from cliploc.report.benchmark_gallery import GalleryPicture, Photographs, disputed, examples, gallery_picture
from cliploc.report.faithfulness import write_faithfulness_report
from cliploc.report.figures import legend
from cliploc.report.html import REPORT_TEMPLATES, count
from cliploc.report.labelling import write_labelling_report
from cliploc.report.presence import write_presence_report
from cliploc.report.segmentation import write_segmentation_report
from cliploc.report.tables import Cell, Table, counted, decimal, percent, to_latex, to_markdown
from cliploc.report.task_folder import SettingResult, kind_of, published, worth, write_files

FILES = ("tables.csv", "tables.md", "tables.tex", "report.html")
MOST_LISTED = 200  # problems; the rows hold all failures
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


def write_report(out_folder: str | os.PathLike[str], *, pictures: bool = True) -> Path:
    """Writes any benchmark's report into its folder, the same bytes each time; `pictures`: with photographs."""
    folder = Path(out_folder)
    of_task = {
        "segmentation": write_segmentation_report,
        "faithfulness": write_faithfulness_report,
        "presence": write_presence_report,
        "labelling": write_labelling_report,
    }
    if write := of_task.get(kind_of(folder)):
        return write(folder, pictures=pictures)
    run = read_run(folder)
    both = [tables.comparison(run), tables.every_number(run)]
    texts = (
        tables.to_csv(run),
        to_markdown(f"cliploc benchmark: {tables.dataset_line(run)}", both),
        to_latex(both),
        page(run, both, pictures),
    )
    return write_files(run.folder, texts, FILES)


def page(run: BenchmarkRun, both: Sequence[Table], pictures: bool) -> str:
    """The whole page as HTML."""
    photographs = Photographs(Path(str(run.dataset.get("root", "."))), pictures)
    evaluated = [one for one in run.ranked if len(run.of(one))]
    compared, numbers = both
    sources = list(published(tables.PUBLISHED)["sources"].values()) if is_imagenet(run) else []
    parts = [
        Section("published", "Published", compared.title, {"table": compared, "sources": sources}),
        Section("numbers", "All numbers", numbers.title, {"table": numbers}),
        *(sections(run, evaluated, photographs) if evaluated else []),
        Section("problems", "Problems", "Problems and failures", _problems(run)),
        Section("manifest", "Manifest", "How it was made", _manifest(run)),
    ]
    return REPORT_TEMPLATES.render(
        "benchmark.html",
        title=f"Benchmark: {tables.dataset_line(run)}",
        about=_facts(run),
        headline=_headline(evaluated),
        parts=parts,
        photographs=photographs,
    )


# ----------------------------------------------------------------------------------------------------------- the head
def _facts(run: BenchmarkRun) -> dict[str, str]:
    data = run.dataset
    samples = run.rows["sample"].nunique()
    facts = {
        "dataset": f"{data['name']} {data['split']}",
        "role": {"tune": "may choose τ", "report": "may only be reported on"}.get(str(data.get("role")), ""),
        "subset": data.get("subset") or "",
        "samples": f"{samples:,}",
        "settings": f"{len(run.settings):,}",
        "models": in_words(sorted({str(one.about.get("model")) for one in run.settings})),
        "started": " ".join(str((run.manifest.get("sessions") or [{}])[0].get("started", ""))[:16].split("T")),
        "cliploc": str(run.manifest.get("cliploc_version") or ""),
    }
    return {key: value for key, value in facts.items() if value}


def _headline(settings: Sequence[SettingResult]) -> dict[str, Any] | None:
    """`best` by MaxBoxAcc, `fixed` by GT-known Loc at a fixed τ, how many intervals are `alike`; None: nothing."""
    if not settings:
        return None
    best, *others = settings
    fixed = [one for one in settings if not one.oracle and one.number("gt_known") is not None]
    ends = best.interval("max_box_acc")
    overlapping = [one for one in others if ends and (other := one.interval("max_box_acc")) and other[1] > ends[0]]
    return {
        "best": best if best.number("max_box_acc") is not None else None,
        "fixed": max(fixed, key=lambda one: (worth(one.number("gt_known")), -one.index)) if fixed else None,
        "alike": len(overlapping),
    }


# -------------------------------------------------------------------------------------------------------------- notes
def _problems(run: BenchmarkRun) -> dict[str, Any]:
    """Problems of the dataset and failures: a table of the first ones and the number of each."""
    problems: Sequence[Mapping[str, Any]] = run.dataset.get("problems") or []
    kinds = Counter(str(one.get("kind")) for one in problems)
    failed = run.rows[run.rows["status"] != "ok"]
    failures: Sequence[Any] = []
    if len(failed):
        failures = failed.groupby(["setting", "sample", "reason"], dropna=False, sort=True).size().index
    named = {one.id: one.label for one in run.settings}
    columns = ("kind", "source", "reason")
    left_out = [[one.get(key) for key in columns] for one in problems[:MOST_LISTED]]
    broken = [[named.get(setting, setting), sample, reason] for setting, sample, reason in failures[:MOST_LISTED]]
    return {
        "counted": ", ".join(f"{kind} {amount:,}" for kind, amount in sorted(kinds.items())),
        "dataset": _list(columns, left_out, len(problems)),
        "failed": len(failed),
        "rows": len(run.rows),
        "failures": _list(("setting", "sample", "reason"), broken, len(failures)),
    }


def _list(titles: Sequence[str], rows: Sequence[Sequence[object]], total: int) -> Table:
    """A table whose last column may have long text."""
    notes = [f"The first {len(rows)} of {total:,}."] if total > len(rows) else []
    cells = [[*map(Cell, map(str, row[:-1])), Cell(str(row[-1]), wrap=True)] for row in rows]
    return Table("Problems", dict.fromkeys(titles, ""), {"": cells}, titles, notes)


def _manifest(run: BenchmarkRun) -> dict[str, Any]:
    shown = {key: value for key, value in run.manifest.items() if key not in ("settings", "dataset", "sessions")}
    data = {key: value for key, value in run.dataset.items() if key not in ("classes", "reasons", "problems")}
    data["classes"] = len(run.dataset["classes"])
    keys = list(dict.fromkeys(key for one in run.settings for key in one.about))
    rows = [[Cell(_short(one.about.get(key))) for key in keys] for one in run.settings]
    return {
        "sessions": [_pairs(one) for one in run.manifest.get("sessions") or []],
        "run": _pairs(shown),
        "dataset": _pairs(data),
        "settings": Table("Settings", dict.fromkeys(keys, ""), {"": rows}, keys),
        "raw": json.dumps({**run.manifest, "dataset": data}, ensure_ascii=False, indent=1),
    }


def _short(value: Any) -> str:
    text = in_words(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Entries of the manifest: name, value in words, and whether the value is a command."""
    return [(key.replace("_", " "), *_value(value)) for key, value in values.items()]


def _value(value: Any) -> tuple[str, bool]:
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return shlex.join(value), True
    return in_words(value), False


# --------------------------------------------------------------------------------------------------- sections from rows
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
                decimal(float(TAUS[best]), 3),
                percent(float(one.curve[best])),
                decimal(one.threshold, 3),
                percent(None if own is None else float(own)),
                Cell(f"{TAUS[start]:.3f} – {TAUS[stop]:.3f}", float(TAUS[stop] - TAUS[start])),
            ]
        )
    table = Table("Thresholds", columns, {"": rows}, {"setting"})
    return {"figure": tau_curves(curves), "legend": legend((one.index, one.label) for one in curves), "table": table}


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
        "legend": legend((one.index, one.label) for one in settings),
        "size": breakdown(settings, size, QUARTILES, "size of the object"),
        "cuts": ", ".join(f"{100 * end:.0f}" for end in ends),
        "number": breakdown(settings, number, INSTANCES, "number of true boxes"),
        "table": _count_table(settings, size, number),
        "kinds": KINDS_OF_BOXES,
        "misses": _misses(run, settings) if (run.rows["miss"] != "").any() else [],
    }


def _by(run: BenchmarkRun, settings: Sequence[SettingResult], group: Callable[[Any], Any]) -> Counts:
    """Of each setting the hits and pictures of each of four groups; `group`: rows → the number of each one's group."""
    found = {}
    for one in settings:
        rows = run.of(one)
        places, hits = group(rows), rows["hit"].to_numpy(dtype=bool)
        found[one.id] = [(int(hits[places == i].sum()), int((places == i).sum())) for i in range(4)]
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
            rows.append([Cell(one.label), Cell(what), *map(counted, amounts)])
    title = "Hits and misses by size and number of objects"
    return Table(title, columns, {"": rows}, {"setting", "box"})


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
