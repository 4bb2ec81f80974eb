"""Box curves: how well one map's boxes fit at every threshold, for MaxBoxAcc and related metrics."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError, UsageError
from cliploc.metrics._infra.contours import contour_boxes

Floats = npt.NDArray[np.float64]
Convention = Literal["wsoleval", "exact"]
CONVENTIONS: tuple[Convention, ...] = ("wsoleval", "exact")
SIDE = 224  # pixels of the maps that the WSOL evaluation compares
MAX_PIXELS = 25_000_000  # of a map
PAIRS = 2**18  # pairs of boxes that are compared at once: 2 MB for each of the arrays
TAUS: Floats = np.arange(0, 1, 0.001)  # the thresholds τ that are tried


@dataclass(frozen=True)
class BoxCurve:
    """The best IoU of one map's boxes with the true boxes at each of its at most 256 levels; see `index`."""

    image_id: str  # which image
    largest: Floats  # [k], the IoU of the largest contour's box; k − 1 is the map's highest level
    best: Floats  # [k], the IoU of the best of all contours' boxes

    def __post_init__(self) -> None:
        if self.largest.shape != self.best.shape or not 1 <= len(self.best) <= 256:
            raise ValueError(f"expected two curves of 1 to 256 levels, got {self.largest.shape} and {self.best.shape}")

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
    boxes = contour_boxes((heat * 255).astype(np.uint8), heat=heat)
    height, width = heat.shape
    largest, every = boxes.largest, boxes.every
    if convention == "wsoleval":
        edge = np.array([width, height, width - 1, height - 1])
        largest, every = np.minimum(largest, edge), np.minimum(every, edge)
    extra: Literal[0, 1] = 1 if convention == "wsoleval" else 0
    starts = np.searchsorted(boxes.cut, np.arange(len(largest)))
    best = np.maximum.reduceat(_best_iou(every, truths, extra), starts)
    return BoxCurve(image_id, _best_iou(largest, truths, extra), best)


def check_header(shape: tuple[int, ...], dtype: np.dtype[np.generic], convention: Convention = "wsoleval") -> None:
    """Refuses an array that cannot be a score map, by its shape and type, before its numbers are read."""
    if convention not in CONVENTIONS:
        raise UsageError(f"expected convention to be one of {', '.join(CONVENTIONS)}, got {convention!r}")
    size = "×".join(map(str, shape)) or "a single number"
    if convention == "wsoleval" and shape != (SIDE, SIDE):
        raise InputError(f"expected a map of {SIDE}×{SIDE}, got {size}: resize it, or use the exact convention")
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
