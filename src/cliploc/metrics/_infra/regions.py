"""The regions of a map at all of its thresholds: the result of `basins.py` and `compiled.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cliploc import _imports

IntArray = npt.NDArray[np.int64]
LEVELS = 256


@dataclass(frozen=True)
class Regions:
    """The connected regions of the pixels of at least level t, for all t ≥ 1."""

    level: IntArray  # [n], t of each region, the highest first
    sides: IntArray  # [n, 4], −x0, −y0, x1, y1 of its bounding rectangle, right and bottom edge exclusive
    # [n], twice the area of the polygon through the centres of its outermost pixels, without holes: the area that
    # OpenCV gives a contour. Counted from 2×2 squares of pixels.
    corners: IntArray


NONE = Regions(np.zeros(0, np.int64), np.zeros((0, 4), np.int64), np.zeros(0, np.int64))


def compiled() -> Callable[..., tuple[Regions, Regions]] | None:
    """The function that finds regions in compiled code; None where numba (the extra `fast`) is not installed."""
    module = _imports.compiled("cliploc.metrics._infra.compiled")
    return None if module is None else module.regions
