"""Percentile bootstrap over images (Efron & Tibshirani 1993)."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.floating]
Counts = npt.NDArray[np.uint16]
Interval = tuple[float, float] | None
BLOCK = 100  # replicates and columns computed at once: bounds memory at 50,000 images
POISSON_REPLICATES = 200  # of metrics that keep sums over all pixels of all images
MAX_CACHED_COUNTS = 10**8  # draws of at most this many counts are cached for all statistics of the same images


@dataclass(frozen=True)
class Bootstrap:
    """Settings of the confidence intervals."""

    confidence: float = 0.95  # the share of replicates between an interval's ends
    replicates: int = 1000  # how many times the images are drawn, with replacement; 0 for no intervals
    seed: int = 0  # seed of the draws

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1 or self.replicates < 0:
            raise ValueError(f"expected a confidence between 0 and 1 and replicates of 0 or more, got {self}")

    def interval(self, values: npt.NDArray[np.generic], statistic: Callable[[Numbers], Numbers]) -> Interval:
        """The interval of a statistic of column means, as in `replicated`; None without replicates or images."""
        replicates = self.replicated(values, statistic)
        return None if replicates is None else self.quantiles(replicates)

    def replicated(self, values: npt.NDArray[np.generic], statistic: Callable[[Numbers], Numbers]) -> Numbers | None:
        """The statistic of column means, in each replicate, `[replicates]`; the same draws for equal n."""
        n, columns = values.shape
        if not self.replicates or not n:
            return None
        drawn: list[Numbers] = []
        draws = _cached_draws if n * self.replicates <= MAX_CACHED_COUNTS else _drawn
        for counts in draws(n, self.replicates, self.seed):  # [r, n]
            weights = counts.astype(np.float32)
            parts = [weights @ values[:, i : i + BLOCK].astype(np.float32) for i in range(0, columns, BLOCK)]
            drawn.append(statistic(np.concatenate(parts, axis=1) / n))
        return np.concatenate(drawn)

    def quantiles(self, replicates: Numbers) -> tuple[float, float]:
        """The ends of the interval that holds the middle of these replicates."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(replicates, [tail, 1 - tail])
        return float(low), float(high)


def _drawn(n: int, replicates: int, seed: int) -> Iterator[Counts]:
    """Yields how often each of n images is drawn in each replicate, `[r, n]` for r replicates at a time."""
    random = np.random.default_rng(seed)
    for start in range(0, replicates, BLOCK):
        size = min(BLOCK, replicates - start)
        yield random.multinomial(n, np.full(n, 1 / n), size=size).astype(np.uint16)


@functools.lru_cache(maxsize=2)  # all images of a run, and those with predictions
def _cached_draws(n: int, replicates: int, seed: int) -> tuple[Counts, ...]:
    return tuple(_drawn(n, replicates, seed))


def poisson_draws(image_id: str) -> npt.NDArray[np.int64]:
    """An image's weight in each replicate, `[200]`, drawn by its name: so only sums must be kept, in any order."""
    return np.random.default_rng(zlib.crc32(image_id.encode())).poisson(1, POISSON_REPLICATES)


DEFAULT = Bootstrap()
