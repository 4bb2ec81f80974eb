"""Compares the settings of a run with the best one, picture by picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from cliploc.evaluate.metrics import Bootstrap

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class PerPicture:
    """What a setting is compared by: a number that is a statistic of the pictures' mean columns."""

    key: str  # the number's, in summary.json
    samples: Sequence[str]
    values: Floats  # [n, C]
    statistic: Callable[[Floats], Floats]  # mean columns [r, C] → the number [r]
    scale: float = 1.0  # of summary.json: 100 for percent
    low_is_best: bool = False

    def value(self) -> float:
        """The number of all its pictures."""
        return self.scale * float(self.statistic(self.values.mean(axis=0, dtype=np.float64)[None])[0])

    def of(self, samples: Sequence[str]) -> "PerPicture":
        """The same for some of its pictures, in this order."""
        place = {sample: i for i, sample in enumerate(self.samples)}
        values = self.values[[place[sample] for sample in samples]]
        return PerPicture(self.key, samples, values, self.statistic, self.scale, self.low_is_best)

    def replicates(self, bootstrap: Bootstrap) -> Floats:
        """The number in each draw of pictures; settings of the same pictures have the same draws."""
        drawn = bootstrap.replicated(self.values, self.statistic, self.samples)
        assert drawn is not None
        return self.scale * np.asarray(drawn, np.float64)


class Comparison(msgspec.Struct, frozen=True):
    """A setting beside the best one of its run, on the pictures that both have."""

    best: str  # that setting
    number: str  # by which they are compared
    difference: float  # this setting's less the best one's
    confidence_95: tuple[float, float]
    p: float  # that pictures would differ by chance so much; by Holm for all comparisons of the run
    pictures: int


def compared(settings: Mapping[str, PerPicture], bootstrap: Bootstrap) -> dict[str, Comparison]:
    """Every setting but the best, compared with it: paired bootstrap, p-values by Holm 1979."""
    values = {name: (-1 if one.low_is_best else 1) * one.value() for name, one in settings.items() if len(one.samples)}
    if len(values) < 2 or not bootstrap.replicates:
        return {}
    best = max(values, key=lambda name: values[name])
    made: dict[str, Comparison] = {}
    for name in values.keys() - {best}:
        known = {*settings[name].samples}
        samples = [sample for sample in settings[best].samples if sample in known]
        if not samples:
            continue
        one, other = settings[name].of(samples), settings[best].of(samples)
        difference = one.value() - other.value()
        drawn = one.replicates(bootstrap) - other.replicates(bootstrap)
        drawn = drawn[np.isfinite(drawn)]
        low, high = bootstrap.quantiles(drawn)
        by_chance = (1 + int((np.abs(drawn - difference) >= abs(difference)).sum())) / (1 + len(drawn))
        interval = 2 * difference - high, 2 * difference - low
        made[name] = Comparison(best, one.key, difference, interval, by_chance, len(samples))
    adjusted = holm({name: comparison.p for name, comparison in made.items()})
    return {name: msgspec.structs.replace(made[name], p=adjusted[name]) for name in settings if name in made}


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for their number (Holm 1979): each times how many are not smaller, none below a smaller."""
    adjusted: dict[str, float] = {}
    least = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = adjusted[name] = max(least, min(1.0, (len(p_values) - rank) * p))
    return adjusted
