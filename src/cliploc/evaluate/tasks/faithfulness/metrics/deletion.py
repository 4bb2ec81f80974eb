"""Deletion: how fast the score falls when the hottest pixels are removed."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np

from cliploc.evaluate.tasks.faithfulness.judged import (
    Axis,
    FaithfulnessMetric,
    FaithfulNumber,
    Judged,
    Make,
    Measured,
    Scores,
    area,
)
from cliploc.evaluate.tasks.faithfulness.metrics import faithfulness_metric

WIDTH = 16  # steps between the first scores, where a tolerance is given


@faithfulness_metric
class Deletion(FaithfulnessMetric):
    """The area under the score while the hottest pixels are removed step by step; RISE's protocol.

    At 224×224 a step is 224 pixels, so there are 225 scores. Removed pixels are 0 of the normalised picture. The score
    is the softmax probability of the name in question among all names; the area is (Σ − first/2 − last/2)/(n − 1). The
    same pictures also give the area under the cosine, which needs no other names. RISE does not fix the order of
    equally hot pixels; here they are removed row by row from the upper left. `tolerance` scores only the steps that
    the curve needs.
    """

    name = "deletion"
    position = 1
    paper = "Petsiuk et al. 2018, RISE: Randomized Input Sampling for Explanation of Black-box Models, BMVC"
    numbers: ClassVar = {
        "deletion": FaithfulNumber(
            "deletion ↓", "area under the probability while the hottest pixels are removed", "low"
        ),
        "deletion_cosine": FaithfulNumber("deletion, cosine ↓", "the same for the cosine alone", "low", visible=False),
    }
    curves: ClassVar = {"deletion": Axis("share of pixels removed"), "deletion_cosine": Axis("share of pixels removed")}
    fill: ClassVar[str] = "zero"  # what replaces removed pixels, unless the options say

    def measure(self, judged: Judged) -> Measured:
        fill, steps = judged.options.baseline or self.fill, judged.steps
        ends, make = self.ways(judged, fill)

        def score(places: Sequence[int]) -> Scores:
            return judged.scores(len(places), make([steps[place] for place in places], fill))

        both = along(ends, len(steps) - 1, score, judged.options.tolerance)
        curves = dict(zip((self.name, f"{self.name}_cosine"), both, strict=True))
        return Measured({name: area(curve) for name, curve in curves.items()}, curves)

    def ways(self, judged: Judged, fill: str) -> tuple[tuple[Scores, Scores], Callable[[Sequence[int], str], Make]]:
        """The scores at both ends, and what makes the pictures between: from the whole picture to none of it."""
        return (judged.original, judged.empty(fill)), judged.removing


def along(
    ends: tuple[Scores, Scores], last: int, score: Callable[[Sequence[int]], Scores], tolerance: float | None
) -> list[list[float]]:
    """The probabilities and the cosines at each step from 0 to `last`."""
    # Without a tolerance all steps are scored. With one, every 16th is, and then the middle between two, and again as
    # long as a middle is further than the tolerance from the straight line between its neighbours. The others lie on
    # such lines.
    known: dict[int, tuple[float, float]] = {}

    def add(places: Sequence[int], scores: Scores) -> None:
        known.update(zip(places, zip(scores.probability.tolist(), scores.cosine.tolist(), strict=True), strict=True))

    def straight(first: int, middle: int, end: int) -> bool:
        share = (middle - first) / (end - first)
        lines = (a + (b - a) * share for a, b in zip(known[first], known[end], strict=True))
        return all(abs(a - b) <= (tolerance or 0) for a, b in zip(known[middle], lines, strict=True))

    for place, value in zip((0, last), ends, strict=True):
        add([place], value)
    if inner := range(1, last) if tolerance is None else range(WIDTH, last, WIDTH):
        add(inner, score(inner))
    open_ = [] if tolerance is None else [(a, b) for a, b in pairwise(sorted(known)) if b - a > 1]
    while open_:
        middles = [(a + b) // 2 for a, b in open_]
        add(middles, score(middles))
        bent = [(a, m, b) for (a, b), m in zip(open_, middles, strict=True) if not straight(a, m, b)]
        open_ = [(a, b) for ends_ in bent for a, b in pairwise(ends_) if b - a > 1]
    places = sorted(known)
    return [np.interp(range(last + 1), places, [known[place][kind] for place in places]).tolist() for kind in (0, 1)]
