"""Pictures of a benchmark: the photograph once, and over it maps and boxes of any number of settings."""

from __future__ import annotations

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
from cliploc.report.benchmark_data import Floats, Run, Setting, as_boxes
from cliploc.report.html import data_uri, jpeg_uri
from cliploc.report.overlay import ONE_RAMP, OPACITY, covering
from cliploc.schema import ResizePolicy

SIDE = 240  # longest side of a photograph in the page
QUALITY = 80
THUMB = 28  # side of the maps that a run keeps
SHADES = 32  # of a map: its 784 pixels in about 700 bytes
Place = tuple[float, float, float, float]  # x, y, width, height


@dataclass
class Photographs:
    """The photographs that a page needs, each embedded once.

    Attributes:
        root: of the dataset.
        shown: False leaves all out, by choice.
        missing: those that cannot be read, with the reason.
    """

    root: Path
    shown: bool
    missing: dict[str, str] = field(default_factory=dict)
    _known: dict[str, tuple[str, tuple[int, int]] | None] = field(default_factory=dict)
    _data: dict[str, str] = field(default_factory=dict)

    def find(self, path: str) -> tuple[str, tuple[int, int]] | None:
        """The id under which the page has it, and its size in pixels; None if it has not."""
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
        self._data[name] = jpeg_uri(image, quality=QUALITY, optimize=True, progressive=True)
        return name, size

    @property
    def addresses(self) -> Mapping[str, str]:
        """Id → address of all that are shown, for the end of the page."""
        return self._data


@dataclass(frozen=True)
class Picture:
    """One photograph with a setting's map, its boxes (solid) and the true ones (dashed), in the original's shape.

    Attributes:
        width: of the original; the unit of all places is its pixel.
        height: of the original.
        photo: id of the photograph in the page; None where it has none.
        heat: the map's address, and where it lies: x, y, width, height; None where the run kept no map.
        boxes: kind ("found", "found other" or "true") and place of each.
        title: stands first below it.
        iou: of the largest box.
        words: stand last below it.
        says: what it shows, for who cannot see it.
    """

    width: int
    height: int
    photo: str | None
    heat: tuple[str, Place] | None
    boxes: Sequence[tuple[str, Place]]
    title: str
    iou: float
    words: Sequence[str]
    says: str


def picture(run: Run, row: Mapping[str, Any], setting: Setting, photographs: Photographs, title: str = "") -> Picture:
    """What the page shows of one row.

    Args:
        run: the benchmark.
        row: of the run, with all columns.
        setting: whose row it is.
        photographs: where the page keeps them.
        title: stands first below it.
    """
    known = photographs.find(row["path"])
    width, height = _size(row, known[1] if known else None)
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
    return Picture(width, height, known[0] if known else None, heat, boxes, title, iou, words, says)


def _prediction(run: Run, row: Mapping[str, Any]) -> list[str]:
    """What the picture was taken for; nothing where nothing was predicted."""
    ranked, label = [int(one) for one in (row.get("predictions") or [])], int(row["label"])
    if not ranked:
        return []
    if ranked[0] == label:
        return ["class right"]
    place = f", true class {_nth(ranked.index(label) + 1)}" if label in ranked else ""
    return [f"taken for {run.class_name(ranked[0])}{place}"]


def _nth(place: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(place, f"{place}th")


def _size(row: Mapping[str, Any], file_wh: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height of the original, whose pixels boxes are in."""
    if row.get("width") and row.get("height"):
        return int(row["width"]), int(row["height"])
    if file_wh:
        return file_wh
    ends = np.concatenate([as_boxes(row.get(key))[:, 2:] for key in ("boxes", "true_boxes")]).max(axis=0, initial=1)
    return int(np.ceil(ends[0])), int(np.ceil(ends[1]))


def _view(about: Mapping[str, Any], file_wh: tuple[int, int]) -> Place:
    """Where the model's input lies over the photograph: x, y, width, height as shares of it."""
    policy: ResizePolicy = about.get("resize") or "squash"
    if policy == "squash":
        return 0, 0, 1, 1
    from cliploc.geometry import Frame  # brings torch along

    size = about.get("image_size") or (224, 224)
    height, width = (int(one) for one in (size if isinstance(size, Sequence) else (size, size)))
    frame = Frame.fit(policy, (file_wh[1], file_wh[0]), (height, width))
    x0, y0, x1, y1 = frame.to_original([0, 0, width, height], clip=False)[0] / np.array(file_wh * 2)
    return float(x0), float(y0), float(x1 - x0), float(y1 - y0)


def _heat(thumb: bytes) -> str:
    """A map of 28×28 bytes → the address of a PNG in the heat's colours, the more opaque the hotter."""
    heat = np.frombuffer(thumb, np.uint8).reshape(THUMB, THUMB)
    shades = (heat.astype(int) * (SHADES - 1) + 127) // 255
    image = Image.fromarray(shades.astype(np.uint8), "P")
    levels = np.linspace(0, 255, SHADES).round().astype(int)
    image.putpalette(_draw.heat_table()[levels].tobytes())
    alpha = covering(levels.astype(np.uint8), OPACITY, ONE_RAMP)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, bits=8, transparency=alpha.tobytes())
    return data_uri(buffer.getvalue(), "image/png")


def _place(box: Floats) -> Place:
    x0, y0, x1, y1 = (float(end) for end in box)
    return x0, y0, max(x1 - x0, 0), max(y1 - y0, 0)


# ------------------------------------------------------------------------------------------------------------- choices
def chosen(run: Run, setting: Setting, count: int) -> dict[str, list[tuple[str, str]]]:
    """The (setting, sample) keys of the best, borderline and worst pictures of a setting, each class at most once."""
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
    """The first of each class, then, in a run over few classes, the others."""
    order = rows.duplicated("label").to_numpy().argsort(kind="stable")
    taken = rows.iloc[order[:count]]
    return list(zip(taken["setting"], taken["sample"], strict=True))


def disputed(run: Run, settings: Sequence[Setting], count: int) -> list[str]:
    """The samples on which settings differ most: by the spread of their IoUs."""
    rows = run.rows[(run.rows["status"] == "ok") & run.rows["setting"].isin([one.id for one in settings])]
    spread = rows.groupby("sample", sort=True)["iou"].agg(["std", "count"])
    spread = spread[spread["count"] == len(settings)].sort_values("std", ascending=False, kind="stable")
    return [str(one) for one in spread.index[:count]]
