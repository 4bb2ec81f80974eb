"""Masks of corrected sets: reads those that another tool exports, and finds one for a box without a mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from cliploc import polygons, rle
from cliploc.rle import BoolArray

if TYPE_CHECKING:
    from cliploc.jobs.corrections import Correction

SAME = 1.0  # pixels that the edges of a box may have moved and still be those of its draft
# Source of the mask of a corrected box → its text; `filled` counts them.
SOURCES = {
    "set": "from the set",
    "draft": "from the draft with the same box",
    "inside": "from drafts of the label inside the box",
    "box": "the whole box, because no draft of the label has pixels there",
}


def filled(one: Correction, row: Mapping[str, Any]) -> tuple[Correction, Counter[str]]:
    """The correction with a mask for every box, and the number of masks from each source.

    Args:
        one: with the masks of the set.
        row: the picture's drafts, with masks.
    """
    size, masks, sources = [row["height"], row["width"]], list[str | None](), Counter[str]()
    drafts = np.array(row["boxes"], float).reshape(-1, 4)  # [n, 4]
    for box, label, given in zip(one.boxes, one.labels, one.masks or [None] * len(one.boxes), strict=True):
        of_label = [i for i, draft in enumerate(row["labels"]) if draft == label]
        near = [i for i in of_label if np.abs(drafts[i] - box).max() <= SAME]
        counts = given
        source = "set"
        if given is None and near:
            source, counts = "draft", row["masks"][near[0]]
        elif given is None:
            whole = _rectangle(box, (size[0], size[1]))
            inside = np.zeros_like(whole)
            for i in of_label:
                inside |= rle.decode({"size": size, "counts": row["masks"][i]})
            inside &= whole
            source, mask = ("inside", inside) if inside.any() else ("box", whole)
            counts = rle.encode(mask)["counts"]
        masks.append(counts)
        sources[source] += 1
    return replace(one, masks=masks), sources


def in_words(sources: Mapping[str, int]) -> str:
    """One line on where masks are from.

    Example:
        >>> in_words({"set": 2, "box": 1})
        'masks of corrected boxes: 2 from the set; 1 the whole box, because no draft of the label has pixels there'
    """
    parts = [f"{sources[key]:,} {words}" for key, words in SOURCES.items() if sources.get(key)]
    return f"masks of corrected boxes: {'; '.join(parts)}"


def _rectangle(box: Sequence[float], hw: tuple[int, int]) -> BoolArray:
    """The pixels `[H, W]` whose centres lie in a box, or the one that it lies in."""
    rows, columns = np.arange(hw[0]) + 0.5, np.arange(hw[1]) + 0.5
    mask = ((rows >= box[1]) & (rows <= box[3]))[:, None] & ((columns >= box[0]) & (columns <= box[2]))
    if not mask.any():
        mask[min(int(box[1]), hw[0] - 1), min(int(box[0]), hw[1] - 1)] = True
    return mask


def bounds(mask: BoolArray) -> list[float]:
    """The box round a mask: x0, y0, x1, y1, with exclusive right and bottom edges; empty of an empty mask.

    Example:
        >>> bounds(np.array([[0, 1, 1], [0, 0, 0]], bool))
        [1.0, 0.0, 3.0, 1.0]
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


# --------------------------------------------------------------------------------------------- as other tools have them
def of_coco(segmentation: Any, size_wh: tuple[int, int]) -> BoolArray:
    """The mask `[H, W]` of a COCO annotation: polygons, or run lengths, compressed or not.

    Raises:
        ValueError, InputError: it is not a mask, or has another size.
    """
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [size_wh[1], size_wh[0]]:
            raise ValueError(f"a mask of height and width {segmentation['size']}, not {[size_wh[1], size_wh[0]]}")
        return rle.decode(segmentation)
    return _drawn(segmentation, size_wh)


def of_points(points: npt.NDArray[np.floating[Any]], size_wh: tuple[int, int]) -> BoolArray:
    """The mask of one polygon `[k, 2]` in pixels, along edges of pixels, as COCO, CVAT and Label Studio have them.

    Raises:
        ValueError: it is not a polygon.
    """
    return _drawn([points.astype(float).ravel().tolist()], size_wh)


def _drawn(shapes: Any, size_wh: tuple[int, int]) -> BoolArray:
    mask = np.zeros((size_wh[1], size_wh[0]), bool)
    for one in polygons.outlines_of(shapes, size_wh):
        mask |= polygons.draw(one, mask.shape)
    return mask


def of_yolo(shares: Sequence[float], size_wh: tuple[int, int]) -> BoolArray:
    """The mask of a polygon in shares of the picture, filled with its border, as YOLO's readers fill it.

    Raises:
        ValueError: no polygon inside the picture.
    """
    points = np.array(shares, float).reshape(-1, 2)
    if not (np.isfinite(points).all() and points.min() >= -0.01 and points.max() <= 1.01):
        raise ValueError("a polygon outside the picture")
    width, height = size_wh
    corners = np.floor(points * size_wh + 1e-3).clip(0, [width - 1, height - 1]).astype(np.int32)
    drawn = np.zeros((height, width), np.uint8)
    cv2.fillPoly(drawn, [corners], 1)
    return drawn.astype(bool)


def of_cvat(code: Mapping[str, str], size_wh: tuple[int, int]) -> BoolArray:
    """The mask of CVAT's `<mask>`: run lengths of its rectangle, row by row, beginning with those of 0.

    Raises:
        ValueError, KeyError: it is not a mask, or lies outside the picture.
    """
    left, top, width, height = (int(float(code[key])) for key in ("left", "top", "width", "height"))
    counts = np.array([int(one) for one in code["rle"].split(",")], np.int64)
    inside = 0 <= left < left + width <= size_wh[0] and 0 <= top < top + height <= size_wh[1]
    if not inside or not rle.fills(counts, width * height):
        raise ValueError("a mask that does not fill its rectangle, or lies outside the picture")
    mask = np.zeros((size_wh[1], size_wh[0]), bool)
    mask[top : top + height, left : left + width] = rle.of_runs(counts).reshape(height, width)
    return mask


def of_brush(packed: Sequence[int], size_wh: tuple[int, int]) -> BoolArray:
    """The mask of Label Studio's brush; see `cliploc.report.exports.labelstudio.brush`. Half transparent is outside.

    Raises:
        ValueError: it is not a brush, or has another size.
    """
    bits = "".join(f"{one:08b}" for one in bytes(packed))
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise ValueError("a brush that ends too early")
        return int(bits[at - count : at], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    if total != 4 * size_wh[0] * size_wh[1] or word != 8:
        raise ValueError("a brush of another size than the picture")
    values = np.empty(total, np.uint8)
    done = 0
    while done < total:
        same, count = read(1), read(sizes[read(2)]) + 1
        if done + count > total:
            raise ValueError("a brush with data after its end")
        values[done : done + count] = read(word) if same else [read(word) for _ in range(count)]
        done += count
    return values.reshape(size_wh[1], size_wh[0], 4)[..., 3] >= 128
