"""Pictures of a benchmark: the photograph once, and over it maps and boxes of any number of settings."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc.errors import CliplocError
from cliploc.images import load
from cliploc.report import _draw
from cliploc.report._html import escape
from cliploc.report.benchmark_data import Floats, Run, Setting, as_boxes
from cliploc.report.overlay import ONE_RAMP, OPACITY, covering
from cliploc.schema import ResizePolicy

SIDE = 240  # longest side of a photograph in the page
QUALITY = 80
THUMB = 28  # side of the maps that a run keeps
SHADES = 32  # of a map: its 784 pixels in about 700 bytes


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
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY, optimize=True, progressive=True)
        name = f"photo-{len(self._known)}"
        self._data[name] = base64.b64encode(buffer.getvalue()).decode("ascii")
        return name, size

    def definitions(self) -> str:
        """All of them, for the end of the page, to be used by name."""
        images = "".join(
            f'<image id="{name}" width=1 height=1 preserveAspectRatio=none href="data:image/jpeg;base64,{data}"/>\n'
            for name, data in self._data.items()
        )
        return f"<svg class=store aria-hidden=true width=0 height=0><defs>\n{images}</defs></svg>" if images else ""


def picture(row: Mapping[str, Any], setting: Setting, photographs: Photographs, says: str, heat: bool = True) -> str:
    """One photograph with a setting's map, its boxes (solid) and the true ones (dashed), in the original's shape.

    Args:
        row: of the run, with all columns.
        setting: whose row it is.
        photographs: where the page keeps them.
        says: for who cannot see it.
        heat: whether to show the map and what was found, or only what is true.
    """
    known = photographs.find(row["path"])
    width, height = _size(row, known[1] if known else None)
    layers = [f'<rect class=none width="{width}" height="{height}"/>']
    if known:
        layers.append(f'<use href="#{known[0]}" transform="scale({width} {height})"/>')
    if heat and row.get("thumb") is not None:
        x, y, w, h = _view(setting.about, known[1] if known else (width, height))
        layers.append(
            f'<image class=heat x="{x * width:.2f}" y="{y * height:.2f}" width="{w * width:.2f}" '
            f'height="{h * height:.2f}" preserveAspectRatio=none href="data:image/png;base64,{_heat(row["thumb"])}"/>'
        )
    found = as_boxes(row.get("boxes")) if heat else np.zeros((0, 4))
    largest = int((found[:, 2:] - found[:, :2]).prod(axis=1).argmax()) if len(found) else -1
    layers += [_rectangle(box, "found" if i == largest else "found other") for i, box in enumerate(found)]
    layers += [_rectangle(box, "true") for box in as_boxes(row.get("true_boxes"))]
    inside = "".join(layers)
    return f'<svg class=photo viewBox="0 0 {width} {height}" role=img aria-label="{escape(says)}">{inside}</svg>'


def _size(row: Mapping[str, Any], file_wh: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height of the original, whose pixels boxes are in."""
    if row.get("width") and row.get("height"):
        return int(row["width"]), int(row["height"])
    if file_wh:
        return file_wh
    ends = np.concatenate([as_boxes(row.get(key))[:, 2:] for key in ("boxes", "true_boxes")]).max(axis=0, initial=1)
    return int(np.ceil(ends[0])), int(np.ceil(ends[1]))


def _view(about: Mapping[str, Any], file_wh: tuple[int, int]) -> tuple[float, float, float, float]:
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
    """A map of 28×28 bytes → a PNG of the heat's colours, the more opaque the hotter, in base64."""
    heat = np.frombuffer(thumb, np.uint8).reshape(THUMB, THUMB)
    shades = (heat.astype(int) * (SHADES - 1) + 127) // 255
    image = Image.fromarray(shades.astype(np.uint8), "P")
    levels = np.linspace(0, 255, SHADES).round().astype(int)
    image.putpalette(_draw.heat_table()[levels].tobytes())
    alpha = covering(levels.astype(np.uint8), OPACITY, ONE_RAMP)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, bits=8, transparency=alpha.tobytes())
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _rectangle(box: Floats, kind: str) -> str:
    x0, y0, x1, y1 = box
    shape = f'x="{x0:.1f}" y="{y0:.1f}" width="{max(x1 - x0, 0):.1f}" height="{max(y1 - y0, 0):.1f}"'
    return f'<rect class="edge {kind}" {shape}/><rect class="{kind}" {shape}/>'


# ------------------------------------------------------------------------------------------------------------ captions
def caption(run: Run, row: Mapping[str, Any], setting: Setting, title: str) -> tuple[str, str]:
    """What stands below a picture (HTML, after a title), and what it says to who cannot see it (text)."""
    name = run.class_name(int(row["label"]))
    iou = float(row["iou"])
    right = iou >= 0.5
    ranked = [int(one) for one in (row.get("predictions") or [])]
    words = [f"IoU {iou:.2f}"]
    if ranked:
        place = ranked.index(int(row["label"])) + 1 if int(row["label"]) in ranked else 0
        if place == 1:
            words.append("class right")
        else:
            words.append(f"taken for {run.class_name(ranked[0])}" + (f", true class {_nth(place)}" if place else ""))
    sign = "✓" if right else "✗"
    mark = f"<span class={'right' if right else 'wrong'}>{sign} {escape(words[0])}</span>"
    text = (f"<b>{escape(title)}</b> " if title else "") + mark + "".join(f" · {escape(word)}" for word in words[1:])
    file = str(row["path"]).rsplit("/", 1)[-1]
    return text, f"{name} in {file}, {setting.label}: {', '.join(words)}"


def _nth(place: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(place, f"{place}th")


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


def figures(pieces: Iterable[tuple[str, str]]) -> str:
    """Pictures with captions in a grid."""
    inside = "".join(f"<figure>{image}<figcaption>{text}</figcaption></figure>\n" for image, text in pieces)
    return f"<div class=gallery>{inside}</div>"
