"""Max-sensitivity: how much a map changes when the picture changes by noise that nobody sees."""

from typing import ClassVar

import torch
from torch import Tensor

from cliploc.faithfulness import faithfulness_metric
from cliploc.faithfulness._infra.judged import FaithfulnessMetric, FaithfulNumber, Judged, Measured

RADIUS = 0.02  # of normalised values
DRAWS = 10


@faithfulness_metric
class MaxSensitivity(FaithfulnessMetric):
    """max ‖Φ(x + ε) − Φ(x)‖ / ‖Φ(x)‖ over 10 draws of uniform noise with |ε| ≤ 0.02 in each normalised value.

    The paper does not divide by ‖Φ(x)‖; captum and Quantus do. All methods get the same draws. Noisy pictures are
    rounded to 8 bits, as any picture is. A map without heat has no number.
    """

    name = "max_sensitivity"
    position = 21
    paper = "Yeh et al. 2019, On the (In)fidelity and Sensitivity of Explanations, NeurIPS"
    numbers: ClassVar = {
        "max_sensitivity": FaithfulNumber("max-sensitivity ↓", "largest change of the map by small noise", "low")
    }
    needs_method = True

    def measure(self, judged: Judged) -> Measured:
        assert judged.others is not None
        noisy = judged.once("noisy", lambda: judged.images + noise(judged).to(judged.images))
        maps = judged.others.of_pictures("noisy maps", noisy, 0)  # [10, H, W]
        size = float(judged.heat.norm())
        changes = (maps - judged.heat).flatten(1).norm(dim=1)  # [10]
        return Measured({"max_sensitivity": float(changes.max()) / size if size else None})


def noise(judged: Judged) -> Tensor:
    """The draws, `[10, 3, H, W]`."""
    shape, generator = judged.images.shape[1:], torch.Generator().manual_seed(judged.seed)
    return RADIUS * (2 * torch.rand(DRAWS, *shape, generator=generator, dtype=torch.float32) - 1)
