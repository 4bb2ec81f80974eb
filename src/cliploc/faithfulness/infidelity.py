"""Infidelity: whether the heat in a hidden square predicts how much the score changes."""

from typing import ClassVar

import torch
from torch import Tensor

from cliploc.faithfulness import faithfulness_metric
from cliploc.faithfulness._infra.judged import FaithfulnessMetric, FaithfulNumber, Judged, Measured

SQUARES = 48
SIDES = (0.15, 0.5)  # shares of the input's shorter side


@faithfulness_metric
class Infidelity(FaithfulnessMetric):
    """E[(β IᵀΦ − (f(x) − f(x − I)))²], with I a random square of the picture and Φ its map.

    The square is set to 0 of the normalised picture. A map has one value for the three channels, so IᵀΦ is taken as the
    heat in the square. The unit of a map is arbitrary, so β is the best one for the picture: E[IᵀΦ Δ] / E[(IᵀΦ)²] with
    Δ = f(x) − f(x − I) (captum's `normalize`). f is the probability. The squares are the same for all maps of a
    picture, so they are scored once.
    """

    name = "infidelity"
    position = 9
    paper = "Yeh et al. 2019, On the (In)fidelity and Sensitivity of Explanations, NeurIPS"
    numbers: ClassVar = {
        "infidelity": FaithfulNumber(
            "infidelity ↓", "squared error between the score's change and the hidden heat", "low"
        )
    }

    def measure(self, judged: Judged) -> Measured:
        hidden = judged.once("squares", lambda: squares(judged.seed, *judged.heat.shape))  # [n, H, W]

        def score() -> Tensor:
            def make(first: int, last: int) -> Tensor:
                return judged.images * ~hidden[first:last, None].to(judged.images.device)

            return judged.whole.probability - judged.scores(len(hidden), make).probability

        change = judged.once(("squares", judged.target), score).double()
        heat = (hidden * judged.heat.cpu()).flatten(1).sum(dim=1).double()
        return Measured({"infidelity": infidelity(heat, change)})


def infidelity(heat: Tensor, change: Tensor) -> float:
    """The mean squared error of predicting `[n]` changes by `[n]` sums of heat, at the best scale β."""
    power = float((heat**2).mean())
    scale = float((heat * change).mean()) / power if power else 0.0
    return float(((scale * heat - change) ** 2).mean())


def squares(seed: int, height: int, width: int) -> Tensor:
    """Random squares that lie in the picture, `[n, H, W]` bool."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(SQUARES, 3, generator=generator, dtype=torch.float32).tolist()
    low, high = SIDES
    hidden = torch.zeros(SQUARES, height, width, dtype=torch.bool)
    for mask, (of_side, down, across) in zip(hidden, draws, strict=True):
        side = max(1, round((low + (high - low) * of_side) * min(height, width)))
        top, left = round(down * (height - side)), round(across * (width - side))
        mask[top : top + side, left : left + side] = True
    return hidden
