"""Boxes of the connected hot regions of heatmaps, divided at their peaks, for all prompts at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.errors import UsageError
from cliploc.options import DEFAULTS, OPTIONS, Options, Share, ShareOrAuto, check_value
from cliploc.values import BoolArray, ByteArray, FloatArray, IntArray, Threshold

MAPS_AT_ONCE = 64  # tall stacks of maps are labelled in one call; this bounds their memory


@dataclass(frozen=True)
class BoxRule:
    """How a heatmap becomes boxes."""

    # τ; pixels strictly above τ·max are hot. "auto": Otsu's threshold of each map's positive values (Otsu 1979), for
    # maps whose right τ is not known.
    threshold: Threshold = 0.4
    # "all" connected hot regions, or only the "largest" by area (MaxBoxAcc's rule)
    components: Literal["all", "largest"] = DEFAULTS.components
    # regions smaller than this share of the map are dropped (VL-Score's paper: 0.001)
    min_area: float = DEFAULTS.min_area
    max_boxes: int | None = DEFAULTS.max_boxes  # the maximum number of boxes of a map, best first; None for all
    # of two boxes of one map whose IoU is above this, the better stays; None for no suppression
    nms_iou: float | None = DEFAULTS.nms_iou
    connectivity: Literal[4, 8] = 8  # 8 (the WSOL evaluation's) or 4 neighbours (VL-Score's)
    # Unlike a localizer's defaults: published rules do not divide regions, and leave out no box for its score.
    # a region is divided into a part for each peak whose prominence (height over the saddle to a higher peak) is at
    # least this share of the map's maximum; 1: never. Parts are treated like regions: each has its own peak, and
    # `components` and `min_area` apply to it. A region stays whole unless at least two of its parts reach `min_area`.
    split_peaks: float = 1.0
    # scored boxes with a lower score are left out; "auto": those below `MIN_SCORE`, but the best box of a map stays.
    # All boxes without such a score (`boxes_from_maps`) stay.
    min_score: Threshold = 0.0

    def __post_init__(self) -> None:
        for name in ("components", "min_area", "max_boxes", "nms_iou"):
            OPTIONS[name].check(getattr(self, name))
        for name, kind in (("threshold", ShareOrAuto), ("min_score", ShareOrAuto), ("split_peaks", Share)):
            check_value(name, kind, getattr(self, name))  # never None: a rule has no recipe to take a value from
        if self.connectivity not in (4, 8):
            raise UsageError(f"expected connectivity 4 or 8, got {self.connectivity}")

    @classmethod
    def of(cls, options: Options, threshold: Threshold) -> Self:
        """The rule of a localizer's options; `threshold`: that of its method, where they have none."""
        values = {name: getattr(options, name) for name in ("components", "min_area", "max_boxes", "nms_iou")}
        for name in ("threshold", "split_peaks", "min_score"):  # None: a recipe's, of which there is none
            values |= {} if getattr(options, name) is None else {name: getattr(options, name)}
        return cls(**{"threshold": threshold, **values})


@dataclass(frozen=True, eq=False)
class MapBoxes:
    """The boxes of P maps, best first within each."""

    xyxy: FloatArray  # [n, 4] float32, map pixels, exclusive right and bottom edge
    # [n] float32 in 0–1, by which they are ranked. Of `boxes_from_maps` the peak: the map's largest value inside the
    # region, as a share of the map's maximum. Of `scored_boxes` the estimated chance that the box has IoU ≥ 0.5 with
    # what the map is of.
    score: FloatArray
    index: IntArray  # [n] integers: which map a box belongs to
    region: IntArray  # [n] integers: the number of a box's region in the labels of `labelled_boxes`


@dataclass(frozen=True)
class _Regions:
    """n regions of a stack of maps: corners `[n, 4]` on the stack, area, peak, index of the map, number in labels."""

    corners: IntArray
    area: IntArray
    peak: FloatArray
    index: IntArray
    region: IntArray


def boxes_from_maps(maps: FloatArray, rule: BoxRule) -> MapBoxes:
    """The boxes of every map of `[P, H, W]`, non-negative; a map without positive values has no box."""
    if maps.ndim != 3:
        raise ValueError(f"expected maps [P, H, W], got {list(maps.shape)}")
    starts = range(0, len(maps), MAPS_AT_ONCE)
    return joined([_boxes(maps[start : start + MAPS_AT_ONCE], rule, start)[0] for start in starts])


def joined(parts: Sequence[MapBoxes]) -> MapBoxes:
    """The boxes of several lots of maps as one."""
    none = np.zeros(0, np.int64)
    empty = MapBoxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), none, none)
    return MapBoxes(*map(np.concatenate, zip(*(vars(part).values() for part in (empty, *parts)), strict=True)))


def labelled_boxes(heat: FloatArray, rule: BoxRule) -> tuple[MapBoxes, npt.NDArray[np.int32]]:
    """The boxes of a map `[H, W]`, and labels `[H, W]`: 0, or the number of the region, also of one without a box."""
    boxes, labels = _boxes(heat[None], rule, 0)
    return boxes, labels[:-1]


def hot_levels(maps: FloatArray, threshold: Threshold, largest: FloatArray | None = None) -> FloatArray:
    """The value above which pixels of each map `[P, H, W]` are hot; `largest`: the maxima `[P]`, where known."""
    largest = maps.max(axis=(1, 2)) if largest is None else largest
    if not isinstance(threshold, str):
        return (threshold * largest).astype(np.float32)
    chosen = np.zeros(len(maps), dtype=np.float32)
    for i, (heat, top) in enumerate(zip(maps, largest, strict=True)):
        if top > 0:
            positive = heat[heat > 0]
            levels = (positive / top * 255).astype(np.uint8)
            level, _ = cv2.threshold(levels[None], 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
            # The largest value of the lower class, so that "above it" is Otsu's upper class exactly; 0 where the
            # positive values are all alike.
            chosen[i] = positive[levels <= level].max(initial=0)
    return chosen


def share_of_peak(heat: FloatArray, threshold: Threshold) -> float:
    """The threshold of a map `[H, W]` as a share of its maximum: the number itself, or for "auto" the map's own."""
    if not isinstance(threshold, str):
        return float(threshold)
    top = float(heat.max(initial=0))
    return float(hot_levels(heat[None], threshold)[0]) / top if top > 0 else 0.0


def _boxes(maps: FloatArray, rule: BoxRule, first_index: int) -> tuple[MapBoxes, npt.NDArray[np.int32]]:
    """The boxes of maps `[P, H, W]`, and the labels `[P · (H + 1), W]` of their regions."""
    count, height, width = maps.shape
    largest = maps.max(axis=(1, 2))  # [P]
    thresholds = hot_levels(maps, rule.threshold, largest)  # [P]
    # One empty row between maps keeps their regions apart, so that one call labels all of them.
    stack = np.zeros((count, height + 1, width), dtype=np.uint8)
    stack[:, :height] = maps > thresholds[:, None, None]
    hot = stack.reshape(-1, width)
    values = np.empty((count, height + 1, width), np.float32)
    values[:, :height], values[:, height] = maps, 0
    values = values.reshape(-1, width)
    corners, area, peaks, labels = _measured(hot, values, rule.connectivity)
    regions = _Regions(corners, area, peaks, corners[:, 1] // (height + 1), np.arange(1, len(area) + 1))
    fewest = rule.min_area * height * width
    if rule.split_peaks < 1:
        least = (rule.split_peaks * largest).astype(np.float32)
        regions = _divided(regions, values, labels, thresholds, least, fewest, rule.connectivity)
    index = regions.index
    peak = regions.peak / largest[index] if len(index) else regions.peak
    xyxy = (regions.corners - np.outer(index * (height + 1), [0, 1, 0, 1])).astype(np.float32)
    order = _chosen(xyxy, peak, regions, rule, fewest)
    boxes = MapBoxes(xyxy[order], peak[order].astype(np.float32), index[order] + first_index, regions.region[order])
    return boxes, labels.astype(np.int32, copy=False)


def _chosen(
    xyxy: FloatArray, peak: FloatArray, regions: _Regions, rule: BoxRule, fewest: float
) -> npt.NDArray[np.intp]:
    """The regions that give a box, best first within each map; of equal peaks `[n]` the larger region first."""
    selected = np.flatnonzero(regions.area >= fewest)
    area, index = regions.area[selected], regions.index[selected]
    if rule.components == "largest":
        return first_of_each(regions.index, selected[np.lexsort((-area, index))], 1)
    order = selected[np.lexsort((-area, -peak[selected], index))]
    if rule.nms_iou is not None and len(order) > len(np.unique(index)):
        order = suppress(xyxy, regions.index, order, rule.nms_iou)
    return order if rule.max_boxes is None else first_of_each(regions.index, order, rule.max_boxes)


def first_of_each(index: IntArray, order: npt.NDArray[np.intp], most: int) -> npt.NDArray[np.intp]:
    """The first boxes of each map, by map number `[n]` and an order in which those of one map are side by side."""
    of = index[order]
    return order[np.arange(len(order)) - np.searchsorted(of, of) < most]


def are_first(index: IntArray, most: int | None) -> BoolArray:
    """Which boxes `[n]`, best first within each map, are among the first of theirs; all of them without a maximum."""
    first = np.ones(len(index), bool)
    if most is not None:
        first[:] = False
        first[first_of_each(index, np.arange(len(index)), most)] = True
    return first


def _divided(
    regions: _Regions,
    values: FloatArray,
    labels: npt.NDArray[Any],
    low: FloatArray,
    least: FloatArray,
    fewest: float,
    connectivity: Literal[4, 8],
) -> _Regions:
    """Replaces regions with several parts of `fewest` pixels by these, in the labels too; `low`, `least` by map."""
    undivided = np.ones(len(regions.area), bool)
    partitions: list[Parts] = []
    count = len(regions.area)  # the parts' numbers follow the regions'
    # The others cannot become two boxes: they are too small, or no peak is prominent even over the threshold.
    large = regions.area >= max(3, 2 * fewest)
    for region in np.flatnonzero(large & (regions.peak - low[regions.index] >= least[regions.index])):
        left, top, right, bottom = regions.corners[region]
        here = slice(top, bottom), slice(left, right)
        of_map = regions.index[region]
        parts = divide(values[here], labels[here] == region + 1, low[of_map], least[of_map], connectivity)
        if parts is not None and (parts.area >= fewest).sum() > 1:
            undivided[region] = False
            partitions.append(parts)
            np.copyto(labels[here], parts.labels + count, where=parts.labels > 0, casting="same_kind")
            count += len(parts.area)
    if not partitions:
        return regions
    divided, counts = np.flatnonzero(~undivided), [len(parts.area) for parts in partitions]
    corner = np.repeat(np.tile(regions.corners[divided, :2], 2), counts, axis=0)
    return _Regions(
        np.concatenate([regions.corners[undivided], np.concatenate([parts.xyxy for parts in partitions]) + corner]),
        np.concatenate([regions.area[undivided], *(parts.area for parts in partitions)]),
        np.concatenate([regions.peak[undivided], *(parts.peak for parts in partitions)]),
        np.concatenate([regions.index[undivided], np.repeat(regions.index[divided], counts)]),
        np.concatenate([regions.region[undivided], np.arange(len(regions.area) + 1, count + 1)]),
    )


def _measured(
    hot: ByteArray, values: FloatArray, connectivity: Literal[4, 8]
) -> tuple[IntArray, IntArray, FloatArray, npt.NDArray[Any]]:
    """Corners `[n, 4]`, area and largest value of each region, and the labels, from 1, of the regions' pixels."""
    labels: npt.NDArray[Any]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(hot, connectivity=connectivity)
    peaks = np.zeros(count, dtype=np.float32)
    on = np.flatnonzero(labels)
    np.maximum.at(peaks, np.asarray(labels.ravel()[on], np.intp), values.ravel()[on])
    left, top, width, height, area = stats[1:].T.astype(np.int64)  # label 0 is the cold rest
    return np.stack([left, top, left + width, top + height], axis=1), area, peaks[1:], labels


def suppress(xyxy: FloatArray, index: IntArray, order: IntArray, iou: float) -> IntArray:
    """Greedy non-maximum suppression within each map. In `order` each map's boxes are adjacent; the order is kept."""
    boxes, map_of = xyxy[order].astype(np.float64), index[order]
    left, top, right, bottom = boxes.T
    area = (right - left) * (bottom - top)
    ends = np.searchsorted(map_of, map_of, side="right")  # of the map that each box is of
    selected = np.ones(len(order), dtype=bool)
    for i, end in enumerate(ends.tolist()):
        if selected[i] and i + 1 < end:
            rest = slice(i + 1, end)
            width = np.minimum(right[i], right[rest]) - np.maximum(left[i], left[rest])
            height = np.minimum(bottom[i], bottom[rest]) - np.maximum(top[i], top[rest])
            shared = width.clip(min=0) * height.clip(min=0)
            selected[rest] &= shared / (area[i] + area[rest] - shared) <= iou
    return order[selected]


# ---------------------------------------------------------------------------------------------------------------- peaks
MAX_SUMMITS = 64  # for more, testing the paths between them costs more than finding the basins


@dataclass(frozen=True)
class Parts:
    """The parts of one region, highest peak first."""

    xyxy: IntArray  # [n, 4], exclusive right and bottom edge
    area: IntArray  # [n], pixels
    peak: FloatArray  # [n], the largest value inside
    labels: IntArray  # [h, w], 1 … n inside the parts, 0 outside the region


def divide(heat: FloatArray, inside: BoolArray, low: float, least: float, connectivity: Literal[4, 8]) -> Parts | None:
    """Divides a region of `[h, w]` at peaks of prominence ≥ `least` (Chazal et al. 2013); None: fewer than two."""
    if not may_divide(heat, inside, low, least, connectivity):
        return None
    heat = np.where(inside, heat, np.float32(0))
    peak_of = climb(heat, connectivity)
    on = np.flatnonzero(inside)
    tops = on[peak_of[on] == on]
    number = np.full(heat.size, -1, np.int32)
    number[tops] = np.arange(len(tops))
    basin = np.where(inside.ravel(), number[peak_of], np.int32(-1))
    tallest = heat.ravel()[tops]
    roots = _join(_saddles(heat, basin.reshape(heat.shape), connectivity, tallest), tallest, least)
    remaining = np.unique(roots)
    if len(remaining) < 2:
        return None
    remaining = remaining[np.argsort(-tallest[remaining], kind="stable")]
    part_of_root = np.zeros(len(tops) + 1, np.int64)  # the last is for pixels outside, whose basin is -1
    part_of_root[remaining] = np.arange(1, len(remaining) + 1)
    part_of_basin = np.append(part_of_root[roots], 0)
    labels = part_of_basin[basin].reshape(heat.shape)
    xyxy, area = _extents(labels, on)
    return Parts(xyxy, area, tallest[remaining], labels)


def may_divide(
    heat: FloatArray, inside: BoolArray | None, low: float, least: float, connectivity: Literal[4, 8]
) -> bool:
    """Whether a second peak may be prominent. Mostly none is, and this test is much faster than finding the basins.

    Without a region (`inside`), in everything above `low`: if none may be, no region above it, or above any higher
    `low`, has one.
    """
    kernel = np.ones((3, 3), np.uint8) if connectivity == 8 else cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    tall = heat - np.float32(low) >= np.float32(least)
    if inside is not None:
        tall &= inside
    # Where it is tall enough for a summit, mostly a small part of the region, and a pixel around it.
    x0, y0, width, height = cv2.boundingRect(tall.view(np.uint8))
    if not width:
        return False
    here = slice(max(y0 - 1, 0), y0 + height + 1), slice(max(x0 - 1, 0), x0 + width + 1)
    crop = heat[here]
    y, x = np.divmod(np.flatnonzero((crop >= cv2.dilate(crop, kernel)) & tall[here]), crop.shape[1])
    y, x = y + here[0].start, x + here[1].start
    if len(y) < 2 or len(y) > MAX_SUMMITS or connectivity == 4:
        return len(y) > 1
    summit = heat[y, x].astype(np.float64)
    order = np.argsort(-summit, kind="stable")
    y, x, summit = y[order], x[order], summit[order]
    # If a straight line to a higher summit does not go down far enough, the summit is not prominent.
    left = np.arange(1, len(y))
    for to in range(len(y) - 1):
        tested = left[left > to]
        if not len(tested):
            break
        dy, dx = y[to] - y[tested], x[to] - x[tested]
        steps = int(max(np.abs(dy).max(), np.abs(dx).max()))  # 1 or more
        share = np.arange(steps + 1) / steps
        rows, columns = (np.rint(away[:, None] * share).astype(np.intp) for away in (dy, dx))
        lowest = heat[rows + y[tested, None], columns + x[tested, None]].min(axis=1)  # [tested]
        left = np.concatenate([left[left <= to], tested[summit[tested] - lowest >= least]])
        if not len(left):
            return False
    return True


def outer_outlines(hot: ByteArray) -> list[npt.NDArray[np.int32]]:
    """The outer outline `[n, 1, 2]` of each 8-connected region; a fifth of the time of cv2's components."""
    lines, nested = cv2.findContours(hot, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not lines:
        return []
    return [np.asarray(line, np.int32) for line, (*_, parent) in zip(lines, nested[0], strict=True) if parent < 0]


def _saddles(
    heat: FloatArray, basin: npt.NDArray[np.int32], connectivity: Literal[4, 8], tallest: FloatArray
) -> list[tuple[float, int, int]]:
    """The saddles, each with its level and two basins, from the highest down; of equals, the highest peaks' first."""
    count, levels, pairs = len(tallest), [], []
    for one, other in neighbours(connectivity):
        differ = basin[one] != basin[other]
        y, x = np.divmod(np.flatnonzero(differ), differ.shape[1])
        a, b = basin[one][y, x], basin[other][y, x]
        both = (a >= 0) & (b >= 0)
        y, x, a, b = y[both], x[both], a[both].astype(np.int64), b[both].astype(np.int64)
        levels.append(np.minimum(heat[one][y, x], heat[other][y, x]))
        pairs.append(np.minimum(a, b) * count + np.maximum(a, b))
    level, pair = np.concatenate(levels), np.concatenate(pairs)
    order = np.argsort(-level, kind="stable")
    _, first = np.unique(pair[order], return_index=True)  # of each pair of basins the highest
    level, pair = level[order[first]], pair[order[first]]
    a, b = np.divmod(pair, count)
    heights = tallest[a], tallest[b]
    order = np.lexsort((-np.minimum(*heights), -np.maximum(*heights), -level))
    return list(zip(level[order].tolist(), a[order].tolist(), b[order].tolist(), strict=True))


def _join(saddles: list[tuple[float, int, int]], tallest: FloatArray, least: float) -> IntArray:
    """For each basin the basin of the peak that its part belongs to."""
    roots = list(range(len(tallest)))
    heights, needed = tallest.tolist(), float(np.float32(least))
    for level, one, other in saddles:
        a, b = root_of(roots, one), root_of(roots, other)
        higher, lower = (a, b) if heights[a] >= heights[b] else (b, a)
        if a != b and (heights[lower] - level < needed or heights[lower] == level):  # a flat top is one peak
            roots[lower] = higher
    return np.array([root_of(roots, basin) for basin in range(len(roots))])


def root_of(roots: list[int], part: int) -> int:
    """The part that a part was joined to last; shortens the way to it."""
    while roots[part] != part:
        roots[part] = roots[roots[part]]
        part = roots[part]
    return part


def _extents(labels: IntArray, on: npt.NDArray[Any]) -> tuple[IntArray, IntArray]:
    """Bounding rectangle and number of pixels of each label except 0."""
    of = labels.ravel()[on]
    order = np.argsort(of, kind="stable")
    starts = np.searchsorted(of[order], np.arange(1, of.max() + 1))
    y, x = np.divmod(on[order], labels.shape[1])
    low, high = (
        np.stack([end.reduceat(x, starts), end.reduceat(y, starts)], axis=1) for end in (np.minimum, np.maximum)
    )
    return np.concatenate([low, high + 1], axis=1).astype(np.int64), np.bincount(of)[1:].astype(np.int64)


# ---------------------------------------------------------------------------------------------------------- basins
def climb(heat: npt.NDArray[np.floating], connectivity: Literal[4, 8]) -> npt.NDArray[np.intp]:
    """Each pixel's peak `[H * W]`, by steps to the highest neighbour; the last of equal neighbours, so paths end."""
    height, width = heat.shape
    padded = np.pad(heat, 1, constant_values=-np.inf)
    kind = np.int16 if width < 2**14 else np.int32  # small numbers are compared and chosen faster
    if connectivity == 8:  # the best of each row's three, then of the three rows' best
        left, middle, right = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
        best = np.maximum(np.maximum(left, middle), right)
        is_right = right == best
        step = is_right.astype(kind) + (is_right | (middle == best)) - kind(1)
        above, here, below = (best[dy : dy + height] for dy in range(3))
        best = np.maximum(np.maximum(above, here), below)
        higher = np.where(here == best, step[1:-1], step[:-2] - kind(width))
        step = np.where(below == best, step[2:] + kind(width), higher)
    else:
        inner, row = padded[:, 1:-1], padded[1:-1]
        above, left, right, below = inner[:-2], row[:, :-2], row[:, 2:], inner[2:]
        best = np.maximum(np.maximum(np.maximum(above, left), np.maximum(right, below)), heat)
        step = np.where(left == best, kind(-1), kind(-width))
        for value, by in ((heat, 0), (right, 1), (below, width)):
            step = np.where(value == best, kind(by), step)
    target: npt.NDArray[np.intp] = np.arange(heat.size) + step.ravel()
    for _ in range(4):
        target = target[target]
    while True:
        further: npt.NDArray[np.intp] = target[target]
        if np.array_equal(further, target):
            return target
        target = further


def neighbours(connectivity: Literal[4, 8]) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Pairs of views of a map: equal positions in the two views are neighbours, each pair of neighbours once."""
    everything, front, back = slice(None), slice(None, -1), slice(1, None)
    pairs = [((everything, front), (everything, back)), ((front, everything), (back, everything))]
    if connectivity == 8:
        pairs += [((front, front), (back, back)), ((front, back), (back, front))]
    return pairs
