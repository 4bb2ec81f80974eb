"""Masks as COCO's run-length codes, which pycocotools writes; polygons and crowds, drawn by it.

A code is `{"size": [height, width], "counts": text}`. The mask is read column by column; `counts` holds the lengths of
its runs, of 0 and 1 in turn, beginning with 0. In the compressed text each count from the fourth on is the difference
from the one two before it, in groups of 5 bits, the lowest first, each a letter from "0" to "o"
(github.com/cocodataset/cocoapi, common/maskApi.c, `rleToString`). Codes are read here: of a damaged one pycocotools
makes a mask of whatever is in memory.
"""

from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta
from pycocotools import mask as coco

from cliploc.errors import InputError
from cliploc.values import BoolArray

Counts = npt.NDArray[np.int64]


class Rle(TypedDict):
    """A mask in COCO's JSON."""

    size: list[int]  # height and width
    counts: str  # compressed


def encode(mask: npt.ArrayLike) -> Rle:
    """A mask `[H, W]` as COCO's compressed code.

    Example:
        >>> encode([[0, 1], [0, 1]])
        {'size': [2, 2], 'counts': '22'}
    """
    code = coco.encode(np.asarray(mask, bool).astype(np.uint8, order="F"))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}


def decode(rle: Any) -> BoolArray:
    """The mask `[H, W]` of a code, compressed or as a list of counts.

    Example:
        >>> decode({"size": [2, 2], "counts": "22"}).tolist()
        [[False, True], [False, True]]
    """
    return of_runs(counts_of(rle)).reshape(hw_of(rle)[::-1]).T


def part_of(rle: Any) -> tuple[BoolArray, int, int]:
    """The rectangle `[h, w]` of a code's mask that holds all its pixels, and where it lies: left and top."""
    counts, (height, _) = counts_of(rle), hw_of(rle)
    left, top, right, bottom = (int(edge) for edge in bounds(counts, height))
    columns = np.diff(counts.cumsum().clip(left * height, right * height), prepend=left * height)
    return of_runs(columns).reshape(right - left, height).T[top:bottom], left, top


def hw_of(rle: Any) -> tuple[int, int]:
    """Height and width of a code's mask."""
    height, width = rle["size"]
    return int(height), int(width)


def counts_of(rle: Any) -> Counts:
    """The counts of a code, compressed or as a list; they fill its size."""
    try:
        height, width = hw_of(rle)
        text = rle["counts"]
        counts = np.array(text, np.int64).reshape(-1) if isinstance(text, list | tuple) else uncompressed(text)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"expected a mask as COCO's run lengths, size and counts, got {str(rle)[:60]}") from error
    if min(height, width) < 0 or not fills(counts, height * width):
        raise InputError(
            f"expected a mask's counts to add up to its {height} × {width} pixels, got {total(counts):.0f}: the code "
            "is damaged"
        )
    return counts


def runs(flat: BoolArray) -> Counts:
    """The lengths of the runs of a row of pixels, beginning with those outside; the first may be 0."""
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [flat.size]]))
    return np.concatenate([[0], lengths]) if flat.size and flat[0] else lengths


def of_switches(places: npt.NDArray[np.integer[Any]], pixels: int) -> Counts:
    """The runs of a row of so many pixels that switch at these places, in any order; twice at one is not at all."""
    starts, times = np.unique(places, return_counts=True)
    lengths: Counts = np.diff(starts[(times % 2 == 1) & (starts < pixels)], prepend=0, append=pixels)
    return lengths


def placed(part: BoolArray, left: int, top: int, hw: tuple[int, int]) -> Counts:
    """The runs of a mask, column by column, of which a part `[h, w]` is given and the rest is outside."""
    columns = np.pad(part.T, ((0, 0), (1, 1)))  # [w, h + 2]
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
    return of_switches((left + column) * hw[0] + top + row, hw[0] * hw[1])


def united(several: Sequence[Counts]) -> Counts:
    """The runs of the pixels that are inside in any of some masks of one size."""
    if len(several) == 1:
        return several[0]
    starts, ends = (np.concatenate(some) for some in zip(*map(_inside, several), strict=True))
    places = np.concatenate([starts, ends])
    change = np.repeat([1, -1], [len(starts), len(ends)])
    order = places.argsort()  # where one ends and another begins, two switches are none, in either order
    depth = change[order].cumsum()
    return of_switches(places[order][depth == (change[order] == 1)], int(several[0].sum()))


def bounds(counts: Counts, height: int) -> list[float]:
    """The box round a mask: x0, y0, x1, y1, with exclusive right and bottom edges; empty of an empty mask."""
    starts, ends = _inside(counts)
    if not len(starts):
        return [0.0, 0.0, 0.0, 0.0]
    first, last = starts // height, (ends - 1) // height
    if (first != last).any():  # a run from the bottom of a column to the top of the next
        top, bottom = 0, height
    else:
        top, bottom = (starts % height).min(), ((ends - 1) % height).max() + 1
    return [float(first[0]), float(top), float(last[-1] + 1), float(bottom)]


def _inside(counts: Counts) -> tuple[Counts, Counts]:
    """Begin and end of each run of pixels inside."""
    ends = counts.cumsum()
    present = counts[1::2] > 0
    return ends[:-1][::2][present], ends[1::2][present]


def total(counts: Counts) -> float:
    """The sum of counts, as a float: integers of a damaged code may add up to more than 64 bits, and wrap around."""
    return float(counts.sum(dtype=np.float64))


def fills(counts: Counts, pixels: int) -> bool:
    """Whether these are the runs of so many pixels; only then `of_runs` may be called."""
    return bool((counts >= 0).all()) and total(counts) == pixels


def of_runs(counts: Counts) -> BoolArray:
    """The row of pixels of these runs; the reverse of `runs`."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def compressed(counts: Counts) -> str:
    """Counts as COCO's text."""
    pixels = int(counts.sum())
    return str(coco.frPyObjects({"size": [1, pixels], "counts": counts.tolist()}, 1, pixels)["counts"], "ascii")


def uncompressed(text: str | bytes) -> Counts:
    """The counts of COCO's text."""
    letters = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    if not len(letters):
        return np.zeros(0, np.int64)
    if letters.min() < 0 or letters.max() > 63 or letters[-1] & 32:
        raise ValueError("not a text of run lengths")
    last = np.flatnonzero((letters & 32) == 0)
    start = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(letters)) - np.repeat(start, last - start + 1)
    if place.max() > 11:
        raise ValueError("a run length of more than 60 bits")
    differences = np.add.reduceat((letters & 31) << (5 * place), start)
    negative = (letters[last] & 16) != 0
    differences[negative] -= np.int64(1) << (5 * (place[last][negative] + 1))
    for first in (1, 2):  # from the fourth on each is the difference from the one two before it
        differences[first::2] = np.cumsum(differences[first::2])
    return differences


STEPS = 5  # that pycocotools takes along a pixel's side
Run = Annotated[int, Meta(ge=0, le=2**53)]
Corners = Annotated[list[Annotated[float, Meta(gt=-1e9, lt=1e9)]], Meta(min_length=6)]
# ------------------------------------------------------------------------------------------------------------- polygons
# x0, y0, x1, y1 … of a polygon; or ("runs", counts) of a crowd, column by column, first of pixels outside.
Outline = tuple[float, ...] | tuple[str, tuple[int, ...]]


def outline_runs(outline: Outline, hw: tuple[int, int]) -> Counts:
    """The runs of the pixels inside an outline; see `cliploc.images.rle.runs`."""
    if outline and outline[0] == "runs":
        return np.array(outline[1], np.int64)
    [code] = coco.frPyObjects([list(outline)], *hw)
    return uncompressed(code["counts"])


def draw(outline: Outline, hw: tuple[int, int]) -> BoolArray:
    """The pixels `[H, W]` inside an outline."""
    return _filled(outline_runs(outline, hw), hw)


def draw_all(polygons: Sequence[Sequence[Outline]], hw: tuple[int, int]) -> BoolArray:
    """The pixels `[H, W]` in any of many polygons, each with its holes."""
    pixels = hw[0] * hw[1]
    switches = [np.concatenate([outline_runs(ring, hw).cumsum() for ring in polygon]) for polygon in polygons]
    several = [of_switches(of_polygon, pixels) for of_polygon in switches]
    return _filled(united(several), hw) if several else np.zeros(hw, np.bool_)


def _filled(counts: Counts, hw: tuple[int, int]) -> BoolArray:
    return of_runs(counts).reshape(hw[1], hw[0]).T


def outlines_of(segmentation: object, size_wh: tuple[int, int]) -> tuple[Outline, ...]:
    """The outlines of a COCO annotation's `segmentation` in a picture of this size."""
    width, height = size_wh
    try:
        if isinstance(segmentation, dict):
            runs = tuple(msgspec.convert(segmentation.get("counts"), list[Run]))
            if sum(runs) != width * height:
                raise ValueError(f"run lengths of {sum(runs):.6g} pixels, expected {width}×{height}")
            return (("runs", runs),)
        polygons = [tuple(polygon) for polygon in msgspec.convert(segmentation, list[Corners])]
    except (msgspec.ValidationError, OverflowError) as error:
        raise ValueError(f"expected polygons, or a list of run lengths, as COCO publishes them ({error})") from None
    # Half a picture outside is more than any annotator's slip; every step of an edge is walked, and takes memory.
    for polygon in polygons:
        x, y = polygon[::2], polygon[1::2]
        if len(x) != len(y):
            raise ValueError("a polygon with half a corner")
        if min(*x, *y) < -max(size_wh) / 2 or max(x) > 1.5 * width or max(y) > 1.5 * height:
            raise ValueError("a polygon with a corner far outside the picture")
    return tuple(polygons)
