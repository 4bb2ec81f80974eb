"""Writes a segmentation benchmark's report as one HTML page, and its tables as CSV and Markdown; no model is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc.draw.html import embedded
from cliploc.draw.overlay import fit_within
from cliploc.evaluate.tasks.report import TaskRun, read_run, write_files
from cliploc.evaluate.tasks.segmentation.job import NUMBERS
from cliploc.evaluate.tasks.tables import Cell, Table, counted, numbers_csv, numbers_table, percent, to_markdown
from cliploc.formats.voc import palette
from cliploc.images.reading import small_png

EXAMPLES = 6  # pictures, spread over the set
MOST_SETTINGS = 6  # beside each example, best first
SIDE = 240  # longer side in pixels of examples
FACTS = ("short_side", "window", "stride", "logit_scale", "background_threshold", "area_threshold", "position_rule")


class _Example(msgspec.Struct, frozen=True):
    """The columns of a row that an example needs."""

    path: str
    preview: bytes
    true_preview: bytes
    width: int
    height: int


class _Confused(msgspec.Struct, frozen=True):
    """Pixels of a class that are called another."""

    true: int
    predicted: int
    pixels: int
    share: float | None


def write_segmentation_report(folder: Path, *, pictures: bool = True) -> Path:
    """Writes report.html, tables.csv and tables.md into a segmentation benchmark's folder; see `write_report`."""
    run = read_run(folder, lambda _, numbers: numbers.get("miou"))
    refinements = ("refinements", lambda setting: ", ".join(setting.about.get("refine") or []) or "–")
    counts, words = {"evaluated": ("pictures", "")}, {"steps": refinements}
    tables = [numbers_table(run, NUMBERS, counts, cell=percent, words=words)]
    if run.settings:
        columns = {"class": "", "true pixels": "", **dict.fromkeys((setting.id for setting in run.settings), "IoU, %")}
        rows = []
        for label, name in enumerate(run.classes):
            of_class = [setting.of_class(label) for setting in run.settings]
            if pixels := max(numbers.get("pixels", 0) for numbers in of_class):  # it is in the true maps
                rows.append([Cell(name), counted(pixels), *(percent(numbers.get("iou")) for numbers in of_class)])
        tables.append(Table("IoU of each class", columns, rows, {"class"}))
    title, protocol = run.title("Segmentation"), run.manifest.get("protocol") or {}
    page = run.render(
        "segmentation.html",
        title=title,
        about=run.facts(
            {"classes": f"{len(run.classes):,}"},
            {key.replace("_", " "): f"{protocol[key]}" for key in FACTS if key in protocol},
        ),
        numbers=tables[0],
        per_class=tables[1:],
        confused=_confusions(run),
        examples=_examples(run, pictures),
    )
    first, *others = NUMBERS
    csv = numbers_csv(run, [first], others, lambda setting: {"refine": " ".join(setting.about.get("refine") or [])})
    return write_files(folder, (csv, to_markdown(title, tables), page))


def _confusions(run: TaskRun) -> Table | None:
    """The pairs of classes with the most wrong pixels, by the best setting."""
    for setting in run.settings:
        if pairs := msgspec.convert(setting.numbers.get("confused") or [], list[_Confused]):
            rows = [
                [
                    Cell(run.classes[pair.true]), Cell(run.classes[pair.predicted]), counted(pair.pixels),
                    percent(pair.share),
                ]
                for pair in pairs
            ]  # fmt: skip
            columns = {"is": "", "called": "", "pixels": "", "%": "of the class's pixels"}
            return Table(f"What {setting.id} confuses most", columns, rows, {"is", "called"})
    return None


def _examples(run: TaskRun, pictures: bool) -> list[dict[str, Any]]:
    """A few pictures, spread over the set: photograph, true label map, and those of the best settings."""
    visible = [setting.id for setting in run.settings[:MOST_SETTINGS]]
    done: dict[str, None] = {}  # in order
    for sample, setting, status in map(dict.values, run.read_rows(["sample", "setting", "status"])):
        if status == "ok" and setting in visible:
            done[sample] = None
    samples = list(done)
    places = np.linspace(0, len(samples) - 1, min(EXAMPLES, len(samples))).round().astype(int)
    chosen = [samples[place] for place in dict.fromkeys(places.tolist())]
    rows = run.rows_of_samples(_Example.__struct_fields__, chosen)
    table, made = class_colours(run.classes), []
    for sample in chosen:
        of_sample = {name: rows[sample, name] for name in visible if (sample, name) in rows}
        present = {name: msgspec.convert(row, _Example) for name, row in of_sample.items()}
        first = next(iter(present.values()))
        maps = {"true": _labels(first.true_preview), **{name: _labels(row.preview) for name, row in present.items()}}
        size = fit_within((first.width, first.height), SIDE)
        photograph = run.photograph(first.path, size) if pictures else None
        figures = [] if photograph is None else [("picture", embedded(photograph, f"picture {sample}", quality=80))]
        for name, label_map in maps.items():
            drawn = Image.fromarray(table[label_map]).resize(size, Image.Resampling.NEAREST)
            figures.append((name, embedded(drawn, f"{sample}: {name}", quality=85)))
        labels = np.unique(np.concatenate([label_map.ravel() for label_map in maps.values()])).tolist()
        legend = [(run.classes[label], table[label].tolist()) for label in labels if label < len(run.classes)]
        made.append({"sample": sample, "figures": figures, "legend": legend})
    return made


def class_colours(classes: Sequence[str]) -> npt.NDArray[np.uint8]:
    """`[65536, 3]` a label's colour in all pictures, Pascal VOC's: background black, what does not count grey."""
    table = np.full((2**16, 3), 128, np.uint8)
    with_background = classes[0] == "background"
    table[: len(classes)] = palette(len(classes) + 1)[not with_background :][: len(classes)]
    return table


def _labels(png: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(small_png(png, 1024))
