"""Smooth MPRT: randomisation, with maps averaged over noisy pictures so that a map's own noise does not count."""

from typing import ClassVar

import torch
from torch import Tensor

from cliploc.faithfulness import faithfulness_metric
from cliploc.faithfulness._infra.judged import Axis, FaithfulnessMetric, FaithfulNumber, Judged, Measured, spearman
from cliploc.faithfulness.randomisation import SHARES

DRAWS = 8
NOISE = 0.1  # standard deviation, as a share of the picture's range


@faithfulness_metric
class SmoothMprt(FaithfulnessMetric):
    """The rank correlation of the mean map of noisy pictures with that by towers with random weights.

    Each map is (1/N) Σ Φ(x + η_i), with η Gaussian of a standard deviation of 0.1 of the picture's range and the last
    η 0, as in Quantus. N is 8 (Quantus: 50). Weights are random as in `randomisation`, which compares single maps; the
    number is the last correlation. Noisy pictures are rounded to 8 bits and cut to the range of colours.
    """

    name = "smooth_mprt"
    position = 22
    paper = "Hedström et al. 2024, A Fresh Look at Sanity Checks for Saliency Maps, xAI"
    numbers: ClassVar = {
        "smooth_mprt": FaithfulNumber("random tower, smooth", "rank correlation of mean maps with a random tower's")
    }
    curves: ClassVar = {"smooth_mprt": Axis("share of the weights that are random", SHARES)}
    needs_method = True

    def measure(self, judged: Judged) -> Measured:
        others = judged.others
        assert others is not None
        pictures = judged.once("smooth", lambda: noisy(judged.images, judged.seed))  # [8, 3, H, W]
        own, *random = (others.of_pictures("smooth maps", pictures, share).mean(dim=0) for share in (0, *SHARES))
        likeness = [spearman(own, random_map) for random_map in random]
        return Measured({"smooth_mprt": likeness[-1]}, {"smooth_mprt": likeness})


def noisy(images: Tensor, seed: int) -> Tensor:
    """A picture `[1, 3, H, W]` with each draw of noise, the last without: `[8, 3, H, W]`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(DRAWS, *images.shape[1:], generator=generator, dtype=torch.float32)
    drawn[-1] = 0
    return images + NOISE * (images.max() - images.min()) * drawn.to(images)
