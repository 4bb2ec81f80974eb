"""Quantus's pixel flipping is deletion with another end: the same curves for deletion, and backwards for insertion.

Run with quantus 0.6.0, scikit-image 0.26.0 and NumPy 2.4. Its own area is not asked for: it calls `np.trapz`, which
NumPy 2.4 no longer has.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from cliploc.config import FaithfulnessOptions
from cliploc.faithfulness import Judged, Scorer, chosen_metrics
from tests.faithfulness.models import SmallClassifier, random_heat

SIDE, STEP = 24, 32  # pixels of a side; pixels of a step, of which Quantus wants three times to divide the picture


@pytest.mark.parametrize("heat", [random_heat((SIDE, SIDE)), random_heat((SIDE, SIDE), seed=9) ** 4])
def test_the_curves_are_those_of_quantus(heat: Tensor) -> None:
    quantus = pytest.importorskip("quantus", reason="needs quantus")
    model = SmallClassifier().eval()
    images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    target = int(model(images).argmax())

    def flipped(map_: Tensor) -> list[float]:
        """A map of one channel is repeated for three, whose equal values go in one step."""
        metric = quantus.PixelFlipping(
            features_in_step=3 * STEP, perturb_baseline=0.0, normalise=False, disable_warnings=True
        )
        [curve] = metric(
            model=model, x_batch=images.numpy(), y_batch=np.array([target]), a_batch=map_[None, None].numpy(),
            channel_first=True, softmax=True,
        )  # fmt: skip
        return [float(one) for one in curve]

    options = FaithfulnessOptions(steps=SIDE * SIDE // STEP, baseline="zero")
    ours = Judged(images, heat, target, None, Scorer(model, torch.eye(5), 1.0), lambda x: x, options)
    deletion, insertion = (one.measure(ours).curves for one in chosen_metrics(["deletion", "insertion"]))
    assert deletion["deletion"][1:] == pytest.approx(flipped(heat), abs=1e-6)
    assert insertion["insertion"][-2::-1] == pytest.approx(flipped(1 - heat), abs=1e-6)
