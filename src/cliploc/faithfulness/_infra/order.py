"""The order in which a map's pixels are removed, areas under curves, and correlations of maps."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def removal_order(heat: Tensor) -> Tensor:
    """How many pixels go before each of a map `[H, W]`, hottest first, of equal ones row by row: int64."""
    order = heat.flatten().argsort(descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return place.view(heat.shape)


def counts(pixels: int, steps: int) -> list[int]:
    """How many pixels are removed after each step, from 0 to all; the last step may be shorter, as in RISE."""
    step = -(-pixels // min(steps, pixels))
    return [*range(0, pixels, step), pixels]


def area(curve: Sequence[float]) -> float:
    """The area under a curve of n scores at equal distances: (Σ − first/2 − last/2)/(n − 1); RISE's."""
    return float((sum(curve) - curve[0] / 2 - curve[-1] / 2) / (len(curve) - 1))


def pearson(a: Tensor, b: Tensor) -> float | None:
    """The correlation of two series of numbers; None where one of them is constant."""
    a, b = a.flatten().double(), b.flatten().double()
    a, b = a - a.mean(), b - b.mean()
    spread = float(a.norm() * b.norm())
    return None if spread <= 1e-12 * len(a) else float((a @ b) / spread)


def spearman(a: Tensor, b: Tensor) -> float | None:
    """The correlation of the ranks of two maps, equal values with their mean rank; None where a map is flat."""
    return pearson(mean_ranks(a), mean_ranks(b))


def mean_ranks(values: Tensor) -> Tensor:
    """The rank of each value from 0, equal values with their mean: `[n]` float64."""
    _, inverse, times = np.unique(values.flatten().cpu().numpy(), return_inverse=True, return_counts=True)
    last = np.cumsum(times)
    return torch.from_numpy((last - (times + 1) / 2)[inverse.reshape(-1)])
