"""Percentile bootstrap over images (Efron & Tibshirani 1993)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.floating]
BLOCK = 100  # replicates and columns computed at once: bounds memory at 50,000 images


@dataclass(frozen=True)
class Bootstrap:
    """How confidence intervals are made.

    Attributes:
        confidence: the share of replicates between an interval's ends.
        replicates: how many times the images are drawn anew, with replacement; 0 for no intervals.
        seed: of the draws.
    """

    confidence: float = 0.95
    replicates: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1 or self.replicates < 0:
            raise ValueError(f"expected a confidence between 0 and 1 and replicates of at least 0, got {self}")

    def interval(
        self, values: npt.NDArray[np.generic], statistic: Callable[[Numbers], Numbers]
    ) -> tuple[float, float] | None:
        """The interval of a statistic of column means.

        Args:
            values: `[n, T]`, a row for each image.
            statistic: column means `[r, T]` of r replicates → `[r]`. A best τ is thus chosen anew in each replicate.
        """
        n, columns = values.shape
        if not self.replicates or not n:
            return None
        random = np.random.default_rng(self.seed)
        drawn: list[Numbers] = []
        for start in range(0, self.replicates, BLOCK):
            size = min(BLOCK, self.replicates - start)
            weights = random.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float32)  # [r, n]
            parts = [weights @ values[:, i : i + BLOCK].astype(np.float32) for i in range(0, columns, BLOCK)]
            drawn.append(statistic(np.concatenate(parts, axis=1) / n))
        return self.quantiles(np.concatenate(drawn))

    def quantiles(self, replicates: Numbers) -> tuple[float, float]:
        """The ends of the interval that holds the middle of these replicates."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(replicates, [tail, 1 - tail])
        return float(low), float(high)


DEFAULT = Bootstrap()
