"""Completeness: whether a map's values add up to what the score loses without the picture."""

from typing import ClassVar

from cliploc.faithfulness import faithfulness_metric
from cliploc.faithfulness._infra.judged import FaithfulnessMetric, FaithfulNumber, Judged, Measured


@faithfulness_metric
class Completeness(FaithfulnessMetric):
    """|ΣΦ − Δ| / (|ΣΦ| + |Δ|), with Δ = f(x) − f(x₀): the axiom's error, as a share of its two sides.

    Φ is the method's raw map, before it is scaled to 0–1, and f the cosine, which methods explain. x₀ is 0 of the
    normalised picture, or what `--baseline` says. The number is near 0 only for methods whose values are shares of the
    cosine (integrated gradients); the unit of the others is arbitrary, and theirs is often near 1. Their rank, which is
    all that boxes and deletion need, does not depend on it.
    """

    name = "completeness"
    position = 23
    paper = "Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks, ICML"
    numbers: ClassVar = {
        "completeness": FaithfulNumber(
            "completeness error ↓", "the map's sum against the cosine that it explains", "low"
        )
    }
    needs_method = True

    def measure(self, judged: Judged) -> Measured:
        assert judged.others is not None
        total = float(judged.others.raw().sum())
        lost = float(judged.whole.cosine) - float(judged.empty(judged.options.baseline or "zero").cosine)
        sides = abs(total) + abs(lost)
        return Measured({"completeness": abs(total - lost) / sides if sides else 0.0})
