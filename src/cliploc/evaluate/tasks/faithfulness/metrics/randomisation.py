"""Randomisation: a map that shows what the model has learnt changes when the weights are random."""

from typing import ClassVar

from cliploc.evaluate.tasks.faithfulness import measure as base

SHARES = (0.25, 0.5, 1.0)  # of the tower's weights, from the top


@base.faithfulness_metric
class Randomisation(base.FaithfulnessMetric):
    """The rank correlation of the map with the same method's map when weights are random, from the top down.

    The paper's cascading randomisation, from the output down: the last quarter of the image tower's weight tensors, the
    last half, all. A forward pass tells their order. Each tensor's own values are shuffled, which keeps their
    distribution (the paper draws new ones); the text tower stays. The number is the last correlation: with all weights
    random, a map can only show the picture itself.
    """

    name = "randomisation"
    position = 12
    paper = "Adebayo et al. 2018, Sanity Checks for Saliency Maps, NeurIPS"
    numbers: ClassVar = {
        "randomisation": base.Number("random tower", "rank correlation with the map of a random tower")
    }
    curves: ClassVar = {"randomisation": base.Axis("share of the weights that are random", SHARES)}
    needs_method = True

    def measure(self, judged: base.Judged) -> base.Measured:
        assert judged.others is not None
        likeness = [base.spearman(judged.heat, judged.others.of_random_tower(share)) for share in SHARES]
        return base.Measured({"randomisation": likeness[-1]}, {"randomisation": likeness})
