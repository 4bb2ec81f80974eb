"""Small copies of maps, which benchmarks store in their rows for the reports."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from cliploc.report.task_folder import THUMB
from cliploc.values import FloatArray


def thumb(heat: FloatArray) -> bytes:
    """A small copy of a map `[H, W]` in 0–1: the mean in 28×28 cells, as levels 0–255; `heat_of` reads it.

    Example:
        >>> len(thumb(np.ones((56, 84), np.float32)))
        784
    """
    small = F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(heat, np.float32))[None], THUMB)[0]
    return bytes((small.clamp(0, 1) * 255).round().to(torch.uint8).numpy().tobytes())
