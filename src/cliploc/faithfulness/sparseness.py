"""Sparseness: whether a map marks few pixels; it says nothing of which."""

from typing import ClassVar

import torch
from torch import Tensor

from cliploc.faithfulness import faithfulness_metric
from cliploc.faithfulness._infra.judged import FaithfulnessMetric, FaithfulNumber, Judged, Measured


@faithfulness_metric
class Sparseness(FaithfulnessMetric):
    """The Gini index of the map's values: Σ (2i − n − 1) a_i / (n Σ a_i), with a_1 ≤ … ≤ a_n.

    0 for a map with equal values, near 1 for one hot pixel. A map without heat has no index.
    """

    name = "sparseness"
    position = 20
    paper = "Chalasani et al. 2020, Concise Explanations of Neural Networks using Adversarial Training, ICML"
    numbers: ClassVar = {"sparseness": FaithfulNumber("sparseness", "Gini index of the heat: 0 for a flat map")}

    def measure(self, judged: Judged) -> Measured:
        return Measured({"sparseness": gini(judged.heat)})


def gini(heat: Tensor) -> float | None:
    """The Gini index of values of at least 0; None where all are 0.

    Example:
        >>> gini(torch.tensor([0.0, 0.0, 0.0, 1.0]))
        0.75
    """
    values = heat.flatten().double().sort().values
    total = float(values.sum())
    places = torch.arange(1, len(values) + 1, dtype=torch.float64, device=values.device)
    return float(((2 * places - len(values) - 1) * values).sum()) / (len(values) * total) if total else None
