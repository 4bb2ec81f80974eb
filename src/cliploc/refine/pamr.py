"""Pixel-adaptive mask refinement (PAMR): every pixel takes the heat of neighbours with a similar colour."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.refine import refinement
from cliploc.refine._neighbours import moved, strips

STEPS = 10  # the authors'
DILATIONS = (8, 16)  # pixels to the neighbours; those of the segmentation protocols that end with PAMR
SHARPNESS = 0.1  # the authors' factor of the local standard deviation
EPS = 1e-8  # the authors', for places without any contrast
OFFSETS = tuple((d * y, d * x) for d in DILATIONS for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x)
MARGIN = max(DILATIONS)
AT_ONCE = 32  # prompts computed together


@refinement(
    "pamr",
    title="PAMR",
    paper="Araslanov & Roth 2020, Single-Stage Semantic Segmentation from Image Labels, CVPR",
    on="picture",
)
def pamr(picture: Tensor, maps: Tensor, cell: tuple[int, int]) -> Tensor:  # noqa: ARG001  # works on pixels
    """Ten times: map′_i = Σ_n a_in map_n over the neighbours n of pixel i, a_i = softmax_n(k_in).

    k_in = −mean_c |I_ic − I_nc| / (0.1 σ_ic + 1e-8), over the colour channels c. The neighbours are the eight of the
    3×3 window, 8 and 16 pixels away: sixteen, without the pixel itself. σ_ic is the standard deviation of channel c
    over these and the pixel, which counts once for each of the two distances. The picture's border pixels are repeated
    outwards.

    This is the authors' released code; in the paper k is −|I_i − I_n| / σ². The distances are those of NACLIP's
    evaluation; the authors' own are six, from 1 to 24 pixels. A channel's scale does not matter.
    """
    return torch.stack([_steps(affinity(image), heat) for image, heat in zip(picture.float(), maps, strict=True)])


def affinity(picture: Tensor) -> Tensor:
    """a, for each neighbour its weight: `[3, H, W]` → `[16, H, W]`."""
    padded = F.pad(picture[None], (MARGIN,) * 4, mode="replicate")[0]
    count = len(OFFSETS) + len(DILATIONS)
    weights = picture.new_empty(len(OFFSETS), *picture.shape[1:])
    for rows in strips(picture, len(OFFSETS) * len(picture)):
        # Differences to the pixel itself, so that small deviations of bright places are not rounded away.
        centre = picture[:, rows]
        steps = torch.stack([moved(padded, rows, by, MARGIN) - centre for by in OFFSETS])  # [16, 3, rows, W]
        variance = (steps.square().sum(dim=0) - steps.sum(dim=0).square() / count) / (count - 1)  # [3, rows, W]
        unlike = steps.abs_() / (SHARPNESS * variance.clamp(min=0).sqrt() + EPS)
        weights[:, rows] = (-unlike.mean(dim=1)).softmax(dim=0)
    return weights


def _steps(weights: Tensor, maps: Tensor) -> Tensor:
    """Weights `[16, H, W]`, maps `[P, H, W]` → the maps after all steps, `[P, H, W]`."""
    refined = []
    for heat in torch.split(maps.float(), AT_ONCE):
        for _ in range(STEPS):
            padded = F.pad(heat[None], (MARGIN,) * 4, mode="replicate")[0]
            heat = torch.zeros_like(heat)
            for rows in strips(heat):
                for weight, by in zip(weights, OFFSETS, strict=True):
                    heat[:, rows].addcmul_(weight[rows], moved(padded, rows, by, MARGIN))
        refined.append(heat)
    return torch.cat(refined)
