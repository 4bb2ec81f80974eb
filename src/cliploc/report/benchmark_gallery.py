"""The galleries of a benchmark: each photograph is embedded once; maps and boxes of each setting are drawn over it."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc.errors import CliplocError
from cliploc.images import load
from cliploc.report import _draw
from cliploc.report.benchmark_data import BenchmarkRun, as_boxes
from cliploc.report.html import data_uri, jpeg_uri
from cliploc.report.overlay import OPACITY
from cliploc.report.task_folder import Floats, SettingResult, heat_of
from cliploc.values import ResizePolicy

SIDE = 240  # longest side of a photograph in the page
QUALITY = 80
SHADES = 32  # levels of a map, so that its 784 pixels take about 700 bytes
Place = tuple[float, float, float, float]  # x, y, width, height


@dataclass
class Photographs:
    """The photographs that a page needs, each embedded once."""

    root: Path  # the dataset's folder
    shown: bool  # whether photographs are embedded at all
    missing: dict[str, str] = field(default_factory=dict)  # the photographs that cannot be read, with the reason
    _known: dict[str, tuple[str, tuple[int, int]] | None] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)  # id → data URI of each, for the end of the page

    def find(self, path: str) -> tuple[str, tuple[int, int]] | None:
        """The photograph's id in the page and its size in pixels; None if it is not embedded."""
        if not self.shown:
            return None
        if path not in self._known:
            self._known[path] = self._load(path)
        return self._known[path]

    def _load(self, path: str) -> tuple[str, tuple[int, int]] | None:
        try:
            image = load(self.root / path).image
        except CliplocError as error:
            self.missing[path] = str(error)
            return None
        size = image.size
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        name = f"photo-{len(self._known)}"
        self.addresses[name] = jpeg_uri(image, quality=QUALITY, optimize=True, progressive=True)
        return name, size


@dataclass(frozen=True)
class GalleryPicture:
    """One photograph with a setting's map, its boxes (solid) and the true boxes (dashed)."""

    width: int  # width of the original; places are in its pixels
    height: int  # height of the original
    photo: str | None  # the photograph's id in the page; None where it is not embedded
    # the data URI of the map, and its place: x, y, width, height; None where the run stored no map
    heat: tuple[str, Place] | None
    boxes: Sequence[tuple[str, Place]]  # kind ("found", "found other" or "true") and place of each box
    title: str  # the start of the caption
    iou: float  # IoU of the largest box
    words: Sequence[str]  # the end of the caption
    says: str  # the alternative text


def gallery_picture(
    run: BenchmarkRun, row: Mapping[str, Any], setting: SettingResult, photographs: Photographs, title: str = ""
) -> GalleryPicture:
    """Prepares the picture of one row."""
    known = photographs.find(row["path"])
    width, height = int(row["width"]), int(row["height"])
    heat = None
    if row.get("thumb") is not None:
        x, y, w, h = _view(setting.about, known[1] if known else (width, height))
        heat = _heat(row["thumb"]), (x * width, y * height, w * width, h * height)
    found = as_boxes(row.get("boxes"))
    largest = int((found[:, 2:] - found[:, :2]).prod(axis=1).argmax()) if len(found) else -1
    boxes = [("found" if i == largest else "found other", _place(box)) for i, box in enumerate(found)]
    boxes += [("true", _place(box)) for box in as_boxes(row.get("true_boxes"))]
    iou, words = float(row["iou"]), _prediction(run, row)
    name, file = run.class_name(int(row["label"])), str(row["path"]).rsplit("/", 1)[-1]
    says = f"{name} in {file}, {setting.label}: {', '.join([f'IoU {iou:.2f}', *words])}"
    return GalleryPicture(width, height, known[0] if known else None, heat, boxes, title, iou, words, says)


def _prediction(run: BenchmarkRun, row: Mapping[str, Any]) -> list[str]:
    """Words about the predicted class; none where nothing was predicted."""
    ranked, label = [int(one) for one in (row.get("predictions") or [])], int(row["label"])
    if not ranked:
        return []
    if ranked[0] == label:
        return ["class right"]
    place = f", true class {_nth(ranked.index(label) + 1)}" if label in ranked else ""
    return [f"taken for {run.class_name(ranked[0])}{place}"]


def _nth(place: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(place, f"{place}th")


def _view(about: Mapping[str, Any], file_wh: tuple[int, int]) -> Place:
    """The place of the model's input on the photograph: x, y, width, height as fractions of its size."""
    policy: ResizePolicy = about.get("resize") or "squash"
    if policy == "squash":
        return 0, 0, 1, 1
    from cliploc.geometry import Frame  # imports torch

    size = about.get("image_size") or (224, 224)
    height, width = (int(one) for one in (size if isinstance(size, Sequence) else (size, size)))
    frame = Frame.fit(policy, (file_wh[1], file_wh[0]), (height, width))
    x0, y0, x1, y1 = frame.to_original([0, 0, width, height], clip=False)[0] / np.array(file_wh * 2)
    return float(x0), float(y0), float(x1 - x0), float(y1 - y0)


def _heat(thumb: bytes) -> str:
    """Converts a map of 28×28 bytes to the data URI of a PNG in the heat's colours; opacity rises with the heat."""
    shades = (heat_of(thumb).astype(int) * (SHADES - 1) + 127) // 255
    image = Image.fromarray(shades.astype(np.uint8), "P")
    levels = np.linspace(0, 255, SHADES).round().astype(int)
    colours, alpha = (one[levels] for one in _draw.heat_palette(OPACITY))
    image.putpalette(colours.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, bits=8, transparency=alpha.tobytes())
    return data_uri(buffer.getvalue(), "image/png")


def _place(box: Floats) -> Place:
    x0, y0, x1, y1 = (float(end) for end in box)
    return x0, y0, max(x1 - x0, 0), max(y1 - y0, 0)


# ------------------------------------------------------------------------------------------------------------- choices
def examples(run: BenchmarkRun, setting: SettingResult, count: int) -> dict[str, list[tuple[str, str]]]:
    """Keys (setting, sample) of a setting's best, borderline and worst pictures, if possible of different classes."""
    rows = run.of(setting)
    rows = rows[rows["iou"].notna()]
    border = rows.assign(far=(rows["iou"] - 0.5).abs())
    # Of equally bad boxes the one around the largest object was the easiest to get right.
    return {
        "best": _first(rows.sort_values(["iou", "sample"], ascending=[False, True]), count),
        "borderline": _first(border.sort_values(["far", "sample"]), count),
        "worst": _first(rows.sort_values(["iou", "area_share", "sample"], ascending=[True, False, True]), count),
    }


def _first(rows: Any, count: int) -> list[tuple[str, str]]:
    """The keys of the first rows: one of each class at first, then the others."""
    order = rows.duplicated("label").to_numpy().argsort(kind="stable")
    taken = rows.iloc[order[:count]]
    return list(zip(taken["setting"], taken["sample"], strict=True))


def disputed(run: BenchmarkRun, settings: Sequence[SettingResult], count: int) -> list[str]:
    """The samples with the largest standard deviation of IoU between settings."""
    rows = run.rows[(run.rows["status"] == "ok") & run.rows["setting"].isin([one.id for one in settings])]
    spread = rows.groupby("sample", sort=True)["iou"].agg(["std", "count"])
    spread = spread[spread["count"] == len(settings)].sort_values("std", ascending=False, kind="stable")
    return [str(one) for one in spread.index[:count]]
