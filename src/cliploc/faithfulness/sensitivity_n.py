"""Sensitivity-n: whether the heat of n random cells predicts how much the score falls without them."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.faithfulness import faithfulness_metric
from cliploc.faithfulness._infra.judged import Axis, FaithfulnessMetric, FaithfulNumber, Judged, Measured, pearson

CELLS = 14  # along each side
SHARES = (0.05, 0.1, 0.2, 0.4, 0.8)
SUBSETS = 16  # of each size


@faithfulness_metric
class SensitivityN(FaithfulnessMetric):
    """The correlation of the heat in n random cells with the fall of the probability without them, over many draws.

    The features are the cells of a 14×14 grid, as single pixels mean nothing to a tower; n is 5, 10, 20, 40 and 80 % of
    them, with 16 draws each (the paper: 100). Removed cells are 0 of the normalised picture. The number is the mean
    over n, without those where heat or score is constant. The draws are the same for all maps of a picture, so they are
    scored once.
    """

    name = "sensitivity_n"
    position = 10
    paper = "Ancona et al. 2018, Towards better understanding of gradient-based attribution methods, ICLR"
    numbers: ClassVar = {
        "sensitivity_n": FaithfulNumber(
            "sensitivity-n ↑", "correlation of the removed heat with the drop of the score", "high"
        )
    }
    curves: ClassVar = {"sensitivity_n": Axis("share of the cells removed", SHARES)}

    def measure(self, judged: Judged) -> Measured:
        size = tuple(judged.heat.shape)
        cells = judged.once("cells", lambda: subsets(judged.seed))  # [5·16, 14, 14]

        def score() -> Tensor:
            def make(first: int, last: int) -> Tensor:
                gone = F.interpolate(cells[first:last, None].float(), size=size, mode="nearest")
                return judged.images * (1 - gone).to(judged.images)

            return judged.whole.probability - judged.scores(len(cells), make).probability

        change = judged.once(("cells", judged.target), score)
        heat = F.adaptive_avg_pool2d(judged.heat.cpu()[None, None], CELLS)[0, 0]  # [14, 14]
        removed = (cells * heat).flatten(1).sum(dim=1)
        correlations = [
            pearson(a, b) for a, b in zip(torch.split(removed, SUBSETS), torch.split(change, SUBSETS), strict=True)
        ]
        there = [value for value in correlations if value is not None]
        return Measured({"sensitivity_n": sum(there) / len(there) if there else None}, {"sensitivity_n": correlations})


def subsets(seed: int) -> Tensor:
    """Random cells, `[5·16, 14, 14]` bool: 16 draws for each share of `SHARES`."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for share in SHARES:
        for _ in range(SUBSETS):
            cells = torch.zeros(CELLS**2, dtype=torch.bool)
            cells[torch.randperm(CELLS**2, generator=generator)[: round(share * CELLS**2)]] = True
            rows.append(cells.view(CELLS, CELLS))
    return torch.stack(rows)
