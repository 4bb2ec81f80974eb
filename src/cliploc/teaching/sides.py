"""How far the sides of drafts lie from where people put them: what is the same in all pictures can be mended."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from cliploc.calibration import Floats
from cliploc.geometry import iou_matrix
from cliploc.values import FloatArray

ALIKE = 0.4  # IoU from which a draft is compared with a box
USUAL = 0.1  # standard deviation of offsets
FARTHEST = 0.3  # that a side counts as away, as a share of the draft's size


def offsets(drafts: FloatArray, boxes: FloatArray) -> Floats:
    """`[n, 4]` how far inwards each side of a draft must move to its box, as a share of the draft's size.

    Drafts without a box that is alike are left out.

    Example:
        >>> offsets(np.array([[0, 0, 10, 10]]), np.array([[1, 0, 9, 11]])).round(2).tolist()
        [[0.1, 0.0, 0.1, -0.1]]
    """
    if not len(drafts) or not len(boxes):
        return np.zeros((0, 4))
    iou = iou_matrix(drafts, boxes)  # [n, m]
    size = np.tile(drafts[:, 2:] - drafts[:, :2], 2)  # [n, 4]
    away = (boxes[iou.argmax(axis=1)] - drafts) / size * np.array([1, 1, -1, -1])
    found: Floats = away[iou.max(axis=1) >= ALIKE].clip(-FARTHEST, FARTHEST).astype(np.float64)
    return found


def common(found: Iterable[Floats]) -> Floats:
    """`[4]` what the offsets `[n, 4]` of several pictures have in common: their mean, less the more it is chance.

    m · max(0, 1 − 2 e² / m²), e the mean's standard error, in which `USUAL` counts as two offsets more.
    """
    every = np.concatenate([np.zeros((0, 4)), *found])
    count = len(every)
    if count < 2:
        return np.zeros(4)
    mean = every.mean(axis=0)
    error = (((every - mean) ** 2).sum(axis=0) + 2 * USUAL**2) / (count * (count + 1))  # squared
    shrunk: Floats = mean * (1 - 2 * error / np.maximum(mean**2, 1e-12)).clip(0)
    return shrunk


def moved(boxes: FloatArray, by: npt.ArrayLike, size_wh: tuple[int, int]) -> FloatArray:
    """Boxes `[n, 4]` with their sides moved inwards by these shares of their size `[4]`, inside the picture."""
    size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)  # [n, 4]
    there = boxes + np.asarray(by) * size * np.array([1, 1, -1, -1])
    width, height = size_wh
    found: FloatArray = there.clip(0, np.array([width, height] * 2)).astype(np.float32)
    return found
