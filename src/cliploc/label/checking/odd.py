"""Labels that are odd by themselves: no model is needed to see it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from cliploc.formats import LabelledBox, Size
from cliploc.images.geometry import iou_matrix
from cliploc.values import Floats

ONE_PIXEL = 1.5  # pixels of a side that is one pixel, however it is rounded
BEYOND_EDGE = "reaches out of the picture"
BEYOND = 1.0  # pixels that a box may reach out of the picture: sets count from 0 or from 1
HALFWAY, STEEPNESS = 0.65, 20.0  # two boxes of one name are one thing more likely than not from this IoU on


def odd_box(box: LabelledBox, size_wh: Size) -> str | None:
    """What is wrong with a box, whatever it contains; None: nothing."""
    x0, y0, x1, y1 = box.xyxy
    width, height = size_wh
    if not np.isfinite(box.xyxy).all():
        return "an edge is not a number"
    if x1 <= x0 or y1 <= y0:
        return "without area"
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        return "outside the picture"
    if min(x0, y0) < -BEYOND or x1 > width + BEYOND or y1 > height + BEYOND:
        return BEYOND_EDGE
    if max(x1 - x0, y1 - y0) <= ONE_PIXEL:
        return "of one pixel"
    if min(x1 - x0, y1 - y0) <= ONE_PIXEL:
        return "one pixel wide" if x1 - x0 < y1 - y0 else "one pixel high"
    return None


def doubles(xyxy: Floats, names: Sequence[int] | npt.NDArray[np.int64]) -> tuple[Floats, list[int]]:
    """For each of n boxes of a picture: the chance that it is an earlier one of its name again, and which."""
    chance, other = np.zeros(len(xyxy)), [-1] * len(xyxy)
    if len(xyxy) > 1:
        given = np.array(names)
        overlap = np.tril(iou_matrix(xyxy, xyxy).astype(np.float64), -1) * (given[:, None] == given)
        other = overlap.argmax(axis=1).tolist()
        best = overlap.max(axis=1)
        chance = np.where(best > 0, 1 / (1 + np.exp(-STEEPNESS * (best - HALFWAY))), 0)
    return chance, other


def spelt_in_two_ways(names: Iterable[str]) -> dict[str, str]:
    """Spelling → the most frequent one that differs only in case, spaces, hyphens or a plural's ending."""
    count = Counter(names)
    alike: dict[str, list[str]] = defaultdict(list)
    plain = {name: re.sub(r"[\s_-]+", "", name).casefold() or name for name in count}
    for name in sorted(count, key=lambda one: (-count[one], one)):
        key = plain[name]
        singular = key.removesuffix("s")
        alike[singular if len(singular) > 2 and singular in plain.values() else key].append(name)
    return {name: first for first, *others in alike.values() for name in others}
