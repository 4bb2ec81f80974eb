"""Writes a segmentation benchmark's report as one HTML page, and its tables as CSV and Markdown; no model is loaded."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc._documents import SegmentationManifest
from cliploc.images import small_png
from cliploc.report.benchmark_data import worth
from cliploc.report.benchmark_tables import Cell, Table, percent, to_markdown
from cliploc.report.colours import name_colour
from cliploc.report.html import REPORT_TEMPLATES, embedded
from cliploc.report.overlay import fit_within
from cliploc.report.task_folder import ending, read_run, rows_of, rows_of_samples, small_photograph, write_files

NUMBERS = ("miou", "miou_known", "mean_accuracy", "pixel_accuracy", "mean_average_precision")
EXAMPLES = 6  # pictures, spread over the set
SHOWN_SETTINGS = 6  # beside each example, best first
SIDE = 240  # longer side in pixels of examples
NOT_COUNTED = 255
NOT_COMPARABLE = (
    "Numbers of other models, pictures or names are not comparable with these: the published rows are a rough guide."
)


@dataclass(frozen=True)
class SegmentationRun:
    """What a folder holds."""

    folder: Path  # the folder
    manifest: Mapping[str, Any]  # of the run
    numbers: Mapping[str, Mapping[str, Any]]  # setting → numbers in percent, best mIoU first

    @property
    def dataset(self) -> Mapping[str, Any]:
        """Its entry in the manifest."""
        found: Mapping[str, Any] = self.manifest["dataset"]
        return found

    @property
    def classes(self) -> list[str]:
        """Label → name."""
        return [str(one["name"]) for one in self.dataset["classes"]]


def write_segmentation_report(folder: Path, *, pictures: bool = True) -> Path:
    """Writes report.html, tables.csv and tables.md into a segmentation benchmark's folder.

    Args:
        pictures: whether to embed small copies of photographs; label maps are always there.
    """
    run = _read_run(folder)
    tables = [_numbers(run), *([_per_class(run)] if run.numbers else [])]
    title = f"Segmentation: {run.dataset['name']} {run.dataset['split']}, {run.dataset['samples']:,} pictures"
    page = REPORT_TEMPLATES.render(
        "segmentation.html",
        title=title,
        about=_facts(run),
        numbers=tables[0],
        sources=list(published()["sources"].values()) if _published_rows(run) else [],
        per_class=tables[1:],
        confused=_confused(run),
        examples=_examples(run, pictures),
        **ending(run.manifest, run.numbers),
    )
    return write_files(folder, (_csv(run), to_markdown(title, tables), page))


def _read_run(folder: Path) -> SegmentationRun:
    manifest, numbers = read_run(folder, SegmentationManifest, lambda _: NUMBERS)
    ranked = sorted(numbers, key=lambda name: -worth(numbers[name].get("miou")))
    return SegmentationRun(folder, manifest, {name: numbers[name] for name in ranked})


# --------------------------------------------------------------------------------------------------------------- tables
@cache
def published() -> Mapping[str, Any]:
    """Numbers of papers with their sources, from published_segmentation.json."""
    path = Path(__file__).with_name("published_segmentation.json")
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _published_rows(run: SegmentationRun) -> list[Mapping[str, Any]]:
    return [one for one in published()["rows"] if run.dataset["name"] in one["miou"]]


def _facts(run: SegmentationRun) -> dict[str, str]:
    protocol = run.manifest.get("protocol") or {}
    shown = ("short_side", "window", "stride", "logit_scale", "background_threshold", "area_threshold", "position_rule")
    return {
        "dataset": f"{run.dataset['name']} {run.dataset['split']}",
        "pictures": f"{run.dataset['samples']:,}",
        "classes": f"{len(run.classes):,}",
        "settings": f"{len(run.numbers):,}",
        **{key.replace("_", " "): f"{protocol[key]}" for key in shown if key in protocol},
        "cliploc": str(run.manifest.get("cliploc_version") or ""),
    }


def _numbers(run: SegmentationRun) -> Table:
    columns = {
        "setting": "",
        "steps": "refinements",
        "mIoU": "mean over classes of Σ intersection / Σ union over the whole set",
        "mIoU known": "over the classes that the model knows",
        "mAcc": "mean over classes of Σ intersection / Σ true pixels",
        "pixel acc": "share of pixels with the right label",
        "mAP": "mean average precision of the maps; ImageNet-Segmentation only",
        "pictures": "",
        "source": "",
    }
    about = {one["id"]: one for one in run.manifest["settings"]}
    rows = [
        [
            Cell(name),
            Cell(", ".join(about[name].get("refine") or []) or "–"),
            percent(found.get("miou"), _ends(found)),
            percent(found.get("miou_known")),
            percent(found.get("mean_accuracy")),
            percent(found.get("pixel_accuracy")),
            percent(found.get("mean_average_precision")),
            Cell(f"{found['evaluated']:,}", found["evaluated"]),
            Cell("this run"),
        ]
        for name, found in run.numbers.items()
    ]
    groups: dict[str, Sequence[Sequence[Cell]]] = {"This run": rows}
    there = _published_rows(run)
    if there:
        groups["Published, OpenAI's ViT-B/16"] = [
            [Cell(one["method"]), Cell(one["steps"] or "–"), _range(one["miou"][run.dataset["name"]])]
            + [Cell("–")] * 5
            + [Cell(one["cite"])]
            for one in there
        ]
    numeric = frozenset(columns) - {"setting", "steps", "source"}
    return Table("All numbers, in percent", columns, groups, numeric, [NOT_COMPARABLE] if there else [])


def _ends(found: Mapping[str, Any]) -> tuple[float, float] | None:
    ends = (found.get("confidence_95") or {}).get("miou")
    return None if ends is None else (float(ends[0]), float(ends[1]))


def _range(value: float | Sequence[float]) -> Cell:
    if isinstance(value, int | float):
        return Cell(f"{value:.1f}", float(value))
    return Cell(f"{min(value):.1f}–{max(value):.1f}", sum(value) / len(value))


def _per_class(run: SegmentationRun) -> Table:
    """IoU of every class that is in the true maps, by setting."""
    columns = {"class": "", "true pixels": "", **dict.fromkeys(run.numbers, "IoU, %")}
    rows = []
    for label, class_name in enumerate(run.classes):
        of_class = [(found.get("per_class") or {}).get(str(label)) or {} for found in run.numbers.values()]
        pixels = max((one.get("pixels", 0) for one in of_class), default=0)
        if pixels:
            rows.append([Cell(class_name), Cell(f"{pixels:,}", pixels), *(percent(one.get("iou")) for one in of_class)])
    return Table("IoU of each class", columns, {"": rows}, frozenset(columns) - {"class"})


def _confused(run: SegmentationRun) -> Table | None:
    """The pairs of classes with the most wrong pixels, by the best setting."""
    for name, found in run.numbers.items():
        if found.get("confused"):
            rows = [
                [
                    Cell(run.classes[one["true"]]),
                    Cell(run.classes[one["predicted"]]),
                    Cell(f"{one['pixels']:,}", one["pixels"]),
                    percent(one["share"]),
                ]
                for one in found["confused"]
            ]
            columns = {"is": "", "called": "", "pixels": "", "%": "of the class's pixels"}
            return Table(f"What {name} confuses most", columns, {"": rows}, frozenset({"pixels", "%"}))
    return None


def _csv(run: SegmentationRun) -> str:
    """A row for each setting and each published row, with unrounded numbers."""
    file = io.StringIO()
    csv_numbers = ("miou", "miou_low", "miou_high", *NUMBERS[1:])
    columns = ["kind", "setting", "model", "method", "refine", "dataset", "split", *csv_numbers, "evaluated", "source"]
    writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
    writer.writeheader()
    about = {one["id"]: one for one in run.manifest["settings"]}
    of_set = {"dataset": run.dataset["name"], "split": run.dataset["split"]}
    for name, found in run.numbers.items():
        low, high = _ends(found) or ("", "")
        row = {key: found[key] for key in NUMBERS if found.get(key) is not None}
        facts = {key: about[name].get(key) for key in ("model", "method")}
        refine = " ".join(about[name].get("refine") or [])
        row |= {"kind": "this run", "setting": name, **facts, "refine": refine, "evaluated": found["evaluated"]}
        writer.writerow({**of_set, **row, "miou_low": low, "miou_high": high})
    for one in _published_rows(run):
        value = one["miou"][run.dataset["name"]]
        low, high = (value, value) if isinstance(value, int | float) else (min(value), max(value))
        paper = {"kind": "published", "model": "ViT-B/16, OpenAI", "method": one["method"], "refine": one["steps"]}
        middle = round((low + high) / 2, 2)
        source = published()["sources"][one["cite"]]
        writer.writerow({**of_set, **paper, "miou": middle, "miou_low": low, "miou_high": high, "source": source})
    return file.getvalue()


# ------------------------------------------------------------------------------------------------------------- examples
def _examples(run: SegmentationRun, pictures: bool) -> list[dict[str, Any]]:
    """A few pictures, spread over the set: photograph, true label map, and those of the best settings."""
    ids = [
        row["sample"]
        for row in rows_of(run.folder, run.manifest, ["sample", "setting", "status"])
        if row["status"] == "ok"
    ]
    samples = list(dict.fromkeys(ids))
    if not samples:
        return []
    places = np.linspace(0, len(samples) - 1, min(EXAMPLES, len(samples))).round().astype(int)
    chosen = [samples[place] for place in dict.fromkeys(places.tolist())]
    shown = list(run.numbers)[:SHOWN_SETTINGS]
    columns = ["path", "preview", "true_preview", "width", "height"]
    rows = rows_of_samples(run.folder, run.manifest, columns, chosen)
    made = []
    for sample in chosen:
        there = [(name, rows[sample, name]) for name in shown if (sample, name) in rows]
        if not there:
            continue
        first = there[0][1]
        maps = {"true": _labels(first["true_preview"]), **{name: _labels(row["preview"]) for name, row in there}}
        labels = sorted({int(label) for one in maps.values() for label in np.unique(one)} - {NOT_COUNTED})
        colours = {label: name_colour(place) for place, label in enumerate(labels)}
        size = fit_within((first["width"], first["height"]), SIDE)
        figures = [
            (name, embedded(_drawn(one, colours, size), f"{sample}: {name}", quality=85)) for name, one in maps.items()
        ]
        photograph = small_photograph(Path(str(run.dataset["root"])) / first["path"], size) if pictures else None
        if photograph is not None:
            figures.insert(0, ("photograph", embedded(photograph, f"photograph {sample}", quality=80)))
        legend = [(run.classes[label], colour) for label, colour in colours.items() if label < len(run.classes)]
        made.append({"sample": sample, "figures": figures, "legend": legend})
    return made


def _labels(png: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(small_png(png, 1024))


def _drawn(
    labels: np.ndarray[Any, np.dtype[np.uint8]], colours: Mapping[int, tuple[int, int, int]], size_wh: tuple[int, int]
) -> Image.Image:
    """A label map in colours; pixels that do not count are grey."""
    table = np.full((256, 3), 128, np.uint8)
    for label, colour in colours.items():
        table[label] = colour
    return Image.fromarray(table[labels]).resize(size_wh, Image.Resampling.NEAREST)
