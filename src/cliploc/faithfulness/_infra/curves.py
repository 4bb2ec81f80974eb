"""Base classes of metrics that are the area under a curve, as the hottest or the coldest pixels change."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from cliploc.faithfulness._infra.metric import FaithfulnessMetric, Judged, Measured
from cliploc.faithfulness._infra.order import area
from cliploc.faithfulness._infra.scores import Make, Scores, joined

TENTHS = tuple(tenth / 10 for tenth in range(1, 10))


class ScoreArea(FaithfulnessMetric):
    """The areas under the probability and the cosine as a picture is removed or uncovered step by step.

    Attributes:
        fill: what replaces removed pixels, unless the options say.
    """

    fill: ClassVar[str]

    @abstractmethod
    def series(self, judged: Judged, inner: Sequence[int], fill: str) -> Sequence[Scores]:
        """The scores from the first picture to the last.

        Args:
            inner: how many pixels differ from the first picture after each step but the last.
        """

    def measure(self, judged: Judged) -> Measured:
        """See the class."""
        scores = joined(self.series(judged, judged.steps[1:-1], judged.options.baseline or self.fill))
        curves = {self.name: scores.probability.tolist(), f"{self.name}_cosine": scores.cosine.tolist()}
        return Measured({name: area(curve) for name, curve in curves.items()}, curves)


class AccuracyArea(FaithfulnessMetric):
    """The area under the zero-shot top-1 accuracy as 10, 20 … 90 % of the pixels become black."""

    @abstractmethod
    def without(self, judged: Judged, gone: Sequence[int], fill: str) -> Make:
        """Makes pictures, each without the given number of pixels."""

    def measure(self, judged: Judged) -> Measured:
        """See the class."""
        gone = [int(judged.pixels * share) for share in TENTHS]
        scores = judged.scores(len(gone), self.without(judged, gone, judged.options.baseline or "black"))
        right = (scores.first == judged.meant).float().tolist()
        return Measured({self.name: area(right)}, {self.name: right})
