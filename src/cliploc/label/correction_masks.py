"""Masks of corrected sets: reads those that another tool exports, and finds one for a box without a mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.images import polygons, rle
from cliploc.images.rle import BoolArray, Counts
from cliploc.runs.labelling import Candidates, Correction

MOST_PIXELS = 2_000_000_000  # work on the masks of one picture, some seconds
MOST_TIMES = 50  # and at least so many times all pixels of the picture
WALKED, RUN = 10, 500  # pixels that a step along a polygon, and a run of a brush, count as
SAME = 1.0  # pixels that the edges of a box may have moved and still be those of its draft
# Source of the mask of a corrected box → its text; `filled` counts them.
SOURCES = {
    "set": "from the set",
    "draft": "from the draft with the same box",
    "inside": "from drafts of the label inside the box",
    "box": "the whole box, because no draft of the label has pixels there",
}


def filled(correction: Correction, found: Candidates) -> tuple[Correction, Counter[str]]:
    """The correction with a mask for every box, and the number of masks from each source."""
    canvas, sources = Canvas(found.size_wh), Counter[str]()
    masks, of_drafts = list(correction.masks or [None] * len(correction.boxes)), found.masks or ()
    for label in sorted(set(correction.labels)):
        of_label = np.flatnonzero(found.labels == label).tolist()
        inside: BoolArray | None = None  # [H, W], the pixels of all drafts of the label
        for place in (i for i, its in enumerate(correction.labels) if its == label):
            box, given = correction.boxes[place], masks[place]
            near = np.flatnonzero((np.abs(found.xyxy[of_label] - box) <= SAME).all(axis=1))
            if given is not None:
                source = "set"
            elif len(near):
                source, masks[place] = "draft", of_drafts[of_label[near[0]]]
            else:
                if inside is None:
                    inside = canvas.united(of_drafts[i] for i in of_label)
                rows, columns = canvas.window(box)
                part = inside[rows, columns]
                source = "inside" if part.any() else "box"
                whole = part if part.any() else np.ones_like(part)
                masks[place] = rle.compressed(canvas.placed(whole, columns.start, rows.start))
            sources[source] += 1
    return replace(correction, masks=masks), sources


def in_words(sources: Mapping[str, int]) -> str:
    """One line on where masks are from."""
    parts = [f"{sources[key]:,} {words}" for key, words in SOURCES.items() if sources.get(key)]
    return f"masks of corrected boxes: {'; '.join(parts)}"


class UnusableError(ValueError):
    """Why a picture's boxes cannot be taken."""


class Canvas:
    """The size of a picture, and how much work its masks, kept as their runs, may still be: there may be thousands."""

    def __init__(self, size_wh: tuple[int, int]) -> None:
        self.size_wh = size_wh
        self.hw = (size_wh[1], size_wh[0])
        self._left = max(MOST_PIXELS, MOST_TIMES * size_wh[0] * size_wh[1])

    def take(self, pixels: int) -> None:
        """Notes work like that of drawing so many pixels."""
        self._left -= pixels
        if self._left < 0:
            raise UnusableError("its masks are too many and too large together to be drawn: leave some out")

    def placed(self, part: BoolArray, left: int, top: int) -> Counts:
        """The runs of a mask of which a part `[h, w]` is given."""
        self.take(part.size)
        return rle.placed(part, left, top, self.hw)

    def united(self, codes: Iterable[str]) -> BoolArray:
        """The pixels `[H, W]` of any of some masks of the picture's size, as COCO's texts."""
        several = [rle.counts_of({"size": self.hw, "counts": code}) for code in codes]
        return rle.of_runs(rle.united(several)).reshape(self.size_wh).T if several else np.zeros(self.hw, bool)

    def window(self, box: Sequence[float]) -> tuple[slice, slice]:
        """Rows and columns of the pixels whose centres lie in a box, or of the one that it lies in."""
        sides = []
        for side, low, high in ((self.hw[0], box[1], box[3]), (self.hw[1], box[0], box[2])):
            centres = np.arange(side) + 0.5
            sides.append(slice(int(np.searchsorted(centres, low)), int(np.searchsorted(centres, high, "right"))))
        if any(side.start >= side.stop for side in sides):
            row, column = (min(int(low), side - 1) for low, side in zip((box[1], box[0]), self.hw, strict=True))
            sides = [slice(row, row + 1), slice(column, column + 1)]
        return sides[0], sides[1]


# --------------------------------------------------------------------------------------------- as other tools have them
def of_coco(segmentation: Any, canvas: Canvas) -> Counts:
    """The runs of a COCO annotation: polygons, or run lengths, compressed or not."""
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != list(canvas.hw):
            raise ValueError(f"a mask of height and width {segmentation['size']}, not {list(canvas.hw)}")
        return rle.without_empty(rle.counts_of(segmentation))
    return _drawn(segmentation, canvas)


def of_points(points: npt.NDArray[np.floating[Any]], canvas: Canvas) -> Counts:
    """The runs of one polygon `[k, 2]` in pixels, along edges of pixels, as COCO, CVAT and Label Studio have them."""
    return _drawn([points.astype(float).ravel().tolist()], canvas)


def _drawn(shapes: Any, canvas: Canvas) -> Counts:
    outlines = polygons.outlines_of(shapes, canvas.size_wh)
    for outline in outlines:
        canvas.take(WALKED * polygons.steps(outline))
    return rle.united([polygons.runs(outline, canvas.hw) for outline in outlines])


def of_yolo(shares: Sequence[float], canvas: Canvas) -> Counts:
    """The runs of a polygon in shares of the picture, filled with its border, as YOLO's readers fill it."""
    points = np.array(shares, float).reshape(-1, 2)
    if not (np.isfinite(points).all() and points.min() >= -0.01 and points.max() <= 1.01):
        raise ValueError("a polygon outside the picture")
    width, height = canvas.size_wh
    corners = np.floor(points * canvas.size_wh + 1e-3).clip(0, [width - 1, height - 1]).astype(np.int32)
    least = corners.min(axis=0)
    right, bottom = (corners.max(axis=0) - least + 1).tolist()
    drawn = np.zeros((bottom, right), np.uint8)
    canvas.take(WALKED * len(corners))
    cv2.fillPoly(drawn, [corners - least], 1)
    return canvas.placed(drawn.astype(bool), int(least[0]), int(least[1]))


def of_cvat(code: Mapping[str, str], canvas: Canvas) -> Counts:
    """The runs of CVAT's `<mask>`, which has those of its rectangle, row by row, beginning with those of 0."""
    left, top, width, height = (int(float(code[key])) for key in ("left", "top", "width", "height"))
    counts = np.array([int(number) for number in code["rle"].split(",")], np.int64)
    inside = 0 <= left < left + width <= canvas.size_wh[0] and 0 <= top < top + height <= canvas.size_wh[1]
    if not inside or not rle.fills(counts, width * height):
        raise ValueError("a mask that does not fill its rectangle, or lies outside the picture")
    canvas.take(width * height)
    return canvas.placed(rle.of_runs(counts).reshape(height, width), left, top)


def of_voc(numbers: npt.NDArray[Any]) -> dict[int, Counts]:
    """Number of an object → the runs of its pixels in VOC's picture `[H, W]` of such numbers."""
    flat = numbers.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    of_run = flat[starts]
    order = np.argsort(of_run, kind="stable")  # the runs of each number lie together
    kinds, first = np.unique(of_run[order], return_index=True)
    return {
        int(number): rle.of_switches(np.concatenate([starts[some], ends[some]]), flat.size)
        for number, some in zip(kinds, np.split(order, first[1:]), strict=True)
    }


def of_brush(packed: Any, canvas: Canvas) -> Counts:
    """The runs of Label Studio's brush; see `cliploc.formats.labelstudio.brush`. Half transparent is outside."""
    width, height = canvas.size_wh
    if not isinstance(packed, list):
        raise ValueError("a brush that is not a list of numbers")
    most = 4 * width * height  # values of RGBA
    if len(packed) >= 4 and int.from_bytes(bytes(packed[:4]), "big") != most:
        raise ValueError("a brush of another size than the picture")
    if len(packed) > 4 * most + 16:  # the longest code of a value has 28 bits
        raise ValueError("a brush with data after its end")
    bits = f"{int.from_bytes(bytes(packed), 'big'):0{8 * len(packed)}b}" if packed else ""
    at = 32

    def read(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise ValueError("a brush that ends too early")
        return int(bits[at - count : at], 2)

    word = read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    if word != 8:
        raise ValueError("a brush whose values have not 8 bits")
    lengths, values = list[int](), list[int]()
    done = 0
    while done < most:
        same, count = read(1), read(sizes[read(2)]) + 1
        done += count
        if done > most:
            raise ValueError("a brush with data after its end")
        canvas.take(RUN * (1 if same else count))
        lengths += [count] if same else [1] * count
        values += [read(word)] if same else [read(word) for _ in range(count)]
    ends = np.cumsum(np.array(lengths, np.int64)) // 4  # in pixels, row by row: that of a value is that of its alpha
    there = np.array(values) >= 128
    alone = rle.of_switches(np.concatenate([np.append(0, ends[:-1])[there], ends[there]]), width * height)
    top, left, bottom, right = (int(side) for side in rle.bounds(alone, width))
    if top == bottom:
        return alone  # empty
    canvas.take(width * (bottom - top))
    rows = np.diff(alone.cumsum().clip(top * width, bottom * width), prepend=top * width)
    return canvas.placed(rle.of_runs(rows).reshape(bottom - top, width)[:, left:right], left, top)
