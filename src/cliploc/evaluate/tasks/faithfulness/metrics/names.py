"""Correlation with another name's map: a map that depends on the name changes with the name."""

from typing import ClassVar

from cliploc.evaluate.tasks.faithfulness import measure as base


@base.faithfulness_metric
class Names(base.FaithfulnessMetric):
    """The rank correlation of the map with the map of the name that fits the picture second best.

    It is a sanity check, not a score: similar names may well have similar maps. But a map that is the same for all
    names (correlation 1) does not explain any of them.
    """

    name = "names"
    position = 11
    paper = "Adebayo et al. 2018, Sanity Checks for Saliency Maps, NeurIPS"
    numbers: ClassVar = {"names": base.Number("other name", "rank correlation with the map of the second-best name")}
    needs_method = True

    def measure(self, judged: base.Judged) -> base.Measured:
        assert judged.others is not None
        return base.Measured({"names": base.spearman(judged.heat, judged.others.of_other_name())})
