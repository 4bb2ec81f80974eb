"""Score maps, their boxes at every threshold, and how well these fit the true ones, as WSOL metrics need them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError, UsageError
from cliploc.values import WSOL_SIDE, Floats

Integers = npt.NDArray[np.int64]
Convention = Literal["wsoleval", "exact"]
CONVENTIONS: tuple[Convention, ...] = ("wsoleval", "exact")
MAX_PIXELS = 25_000_000  # of a map
PAIRS = 2**18  # pairs of boxes that are compared at once: 2 MB for each of the arrays


@dataclass(frozen=True)
class BoxCurve:
    """The best IoU of one map's boxes with the true boxes at each of its at most 256 levels; see `index`."""

    image_id: str  # which image
    largest: Floats  # [k], the IoU of the largest contour's box; k − 1 is the map's highest level
    best: Floats  # [k], the IoU of the best of all contours' boxes

    def index(self, tau: float) -> int:
        """The level of a threshold τ on this map, ⌊τ · highest⌋: pixels strictly above it are hot."""
        return level(tau, len(self.best) - 1)


def level(tau: float, highest: int) -> int:
    """The level of a threshold τ on a map with this highest level: ⌊τ · highest⌋."""
    if not 0 <= tau <= 1:
        raise UsageError(f"expected a threshold from 0 to 1, got {tau}: it is a share of the map's maximum")
    return int(tau * highest)


def box_curve(
    image_id: str, score_map: npt.ArrayLike, true_xyxy: npt.ArrayLike, convention: Convention = "wsoleval"
) -> BoxCurve:
    """Compares the boxes of a score map `[H, W]` in 0–1, at all thresholds, with the true ones `[m, 4]` in map pixels.

    "wsoleval" gives exactly the numbers of Choe et al. 2020, "Evaluating Weakly Supervised Object Localization Methods
    Right": maps of 224×224, right and bottom edges at most 223, corners counted as pixels (+1) in the IoU. "exact"
    takes maps of any size and exclusive edges. Both round maps to 256 levels (⌊255 · s⌋), and pixels strictly above
    ⌊τ · highest level⌋ are hot.

    Example:
        >>> heat = np.zeros((224, 224))
        >>> heat[50:100, 50:100] = 1
        >>> float(box_curve("a", heat, [[50, 50, 100, 100]]).largest[0])
        1.0
    """
    heat = checked_map(score_map, convention)
    truths = np.asarray(true_xyxy, dtype=np.float64).reshape(-1, 4)
    if not len(truths):
        raise InputError(f"{image_id}: expected at least one true box, got none: leave the picture out")
    boxes = contour_boxes((heat * 255).astype(np.uint8))
    height, width = heat.shape
    largest, every = boxes.largest, boxes.every
    if convention == "wsoleval":
        edge = np.array([width, height, width - 1, height - 1])
        largest, every = np.minimum(largest, edge), np.minimum(every, edge)
    extra: Literal[0, 1] = 1 if convention == "wsoleval" else 0
    best = np.maximum.reduceat(_best_iou(every, truths, extra), boxes.starts)
    return BoxCurve(image_id, _best_iou(largest, truths, extra), best)


@dataclass(frozen=True)
class ContourBoxes:
    """One map's boxes x, y, x + w, y + h at every cut c, pixels above c; 0, 0, 0, 0 where nothing is hot."""

    largest: Integers  # [k, 4], for each cut the box of the contour that encloses the largest area
    every: Integers  # [n, 4], the boxes of all contours, outer and inner, cut by cut
    starts: Integers  # [k], the place of each cut's first box in `every`; each has at least one


def contour_boxes(levels: npt.NDArray[np.uint8]) -> ContourBoxes:
    """OpenCV's contours (RETR_TREE), one search for each level that occurs."""
    cuts = np.arange(int(levels.max()) + 1)
    occurs = np.unique(levels)
    of_level = [_boxes_above(levels, int(cut)) for cut in occurs]
    # Between two levels that occur the mask stays the same; below the lowest it is the whole map.
    if occurs[0]:
        of_level.insert(0, _boxes_above(levels, 0))
        occurs = np.append(0, occurs)
    parts = [of_level[place] for place in np.searchsorted(occurs, cuts, side="right") - 1]
    counts: Integers = np.array([len(every) for _, every in parts])
    largest, every = (np.stack([best for best, _ in parts]), np.concatenate([boxes for _, boxes in parts]))
    return ContourBoxes(largest, every, counts.cumsum() - counts)


def _boxes_above(levels: npt.NDArray[np.uint8], cut: int) -> tuple[Integers, Integers]:
    """The box `[4]` of the largest contour of the pixels above a cut, and those of all contours, `[n, 4]`."""
    hot = (levels > cut).astype(np.uint8)
    contours: Sequence[cv2.typing.MatLike] = cv2.findContours(hot, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if not contours:
        return np.zeros(4, np.int64), np.zeros((1, 4), np.int64)
    boxes = np.array([cv2.boundingRect(contour) for contour in contours], np.int64)
    boxes[:, 2:] += boxes[:, :2]
    return boxes[int(np.argmax([cv2.contourArea(contour) for contour in contours]))], boxes


def check_header(shape: tuple[int, ...], dtype: np.dtype[np.generic], convention: Convention = "wsoleval") -> None:
    """Refuses an array that cannot be a score map, by its shape and type, before its numbers are read."""
    if convention not in CONVENTIONS:
        raise UsageError(f"expected convention to be one of {', '.join(CONVENTIONS)}, got {convention!r}")
    size = "×".join(map(str, shape)) or "a single number"
    if convention == "wsoleval" and shape != (WSOL_SIDE, WSOL_SIDE):
        raise InputError(
            f"expected a map of {WSOL_SIDE}×{WSOL_SIDE}, got {size}: resize it, or use the exact convention"
        )
    if len(shape) != 2 or not math.prod(shape):
        raise InputError(f"expected a map of height × width, got {size}: save one map per file")
    if math.prod(shape) > MAX_PIXELS:
        raise InputError(f"expected a map of at most {MAX_PIXELS // 10**6} million pixels, got {size}: make it smaller")
    if not np.issubdtype(dtype, np.floating):
        raise InputError(f"expected floating-point scores in 0–1, got {dtype}: divide by the type's largest value")


def checked_map(score_map: npt.ArrayLike, convention: Convention = "wsoleval") -> npt.NDArray[np.floating]:
    """The score map as an array, checked so that it can be evaluated."""
    heat = np.asarray(score_map)
    check_header(heat.shape, heat.dtype, convention)
    if not np.isfinite(heat).all():
        bad = int((~np.isfinite(heat)).sum())
        raise InputError(
            f"expected finite scores, got {bad} that are NaN or infinite: correct the method that made them"
        )
    low, high = float(heat.min()), float(heat.max())
    if low < 0 or high > 1:
        raise InputError(f"expected scores in 0–1, got {low:g} to {high:g}: normalise each map")
    return heat


def boxes_on_map(
    xyxy: npt.ArrayLike, size_wh: tuple[int, int], map_hw: tuple[int, int], convention: Convention = "wsoleval"
) -> Floats:
    """Converts true boxes from original pixels to map pixels `[m, 4]`; "wsoleval" truncates them to whole pixels."""
    boxes = np.asarray(xyxy, dtype=np.float64).reshape(-1, 4)
    # Multiply before dividing, as the WSOL evaluation does: the other order can round to just below a whole pixel.
    scaled: Floats = boxes * np.array(map_hw[::-1] * 2) / np.array(size_wh * 2)
    return np.asarray(np.trunc(scaled)) if convention == "wsoleval" else scaled


def _best_iou(boxes: npt.NDArray[np.generic], truths: Floats, extra: Literal[0, 1]) -> Floats:
    """The best IoU of every box `[n, 4]` with any true box `[m, 4]`: `[n]`, computed in bounded memory."""
    rows = max(1, PAIRS // len(truths))
    parts = [iou(boxes[at : at + rows], truths, extra).max(axis=1) for at in range(0, len(boxes), rows)]
    return np.concatenate(parts)


def iou(a_xyxy: npt.ArrayLike, b_xyxy: npt.ArrayLike, extra: Literal[0, 1]) -> Floats:
    """`[n, m]` in float64; WSOL counts corners as pixels (extra 1) and compares ratios in double precision."""
    # Column by column: much faster than reductions over an axis of two.
    ax0, ay0, ax1, ay1 = np.ascontiguousarray(np.asarray(a_xyxy, dtype=np.float64).reshape(-1, 4).T)[:, :, None]
    bx0, by0, bx1, by1 = np.ascontiguousarray(np.asarray(b_xyxy, dtype=np.float64).reshape(-1, 4).T)[:, None, :]
    width = (np.minimum(ax1, bx1) - np.maximum(ax0, bx0) + extra).clip(min=0)  # [n, m]
    height = (np.minimum(ay1, by1) - np.maximum(ay0, by0) + extra).clip(min=0)
    intersection = width * height
    area_a = (ax1 - ax0 + extra).clip(min=0) * (ay1 - ay0 + extra).clip(min=0)
    area_b = (bx1 - bx0 + extra).clip(min=0) * (by1 - by0 + extra).clip(min=0)
    union = area_a + area_b - intersection
    ratio: Floats = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return ratio
