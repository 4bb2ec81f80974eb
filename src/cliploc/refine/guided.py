"""Guided filter: edge-aware upsampling, by which the coarse map follows the edges of the photograph."""

from __future__ import annotations

import torch
from torch import Tensor

from cliploc.refine._registration import refinement
from cliploc.tower import Backbone

EPS = 1e-3  # colour variance (0–1 values) above which a step is an edge
SAMPLES = 16  # pixels to either side of a window's centre; more hardly change the fitted line
AT_ONCE = 8  # prompts computed together: four coefficients a pixel for each


def _threshold(backbone: Backbone, tau: float) -> float:
    """Raises τ on a CNN, at most to 0.5: wide windows raise a map's low values; docs/refinement.md."""
    return max(tau, min(0.5, 1 - (1 - tau) ** 2)) if backbone.kind == "cnn" else tau


@refinement(
    "guided",
    title="Guided filter",
    paper="He et al. 2010, Guided Image Filtering, ECCV; He & Sun 2015, Fast Guided Filter",
    on="picture",
    threshold=_threshold,
    package="kornia",
)
def guided(picture: Tensor, maps: Tensor, cell: tuple[int, int]) -> Tensor:
    """In every window the map is a linear function of the picture's colours: map′_i = mean_k(a_k)ᵀ I_i + mean_k(b_k).

    a_k = (Σ_k + ε U)⁻¹ cov_k(I, map), b_k = mean_k(map) − a_kᵀ mean_k(I), over windows k of 2·cell + 1 pixels around
    pixel i: as wide as the upsampling blurred one cell of the grid. ε is 0.001. Borders are mirrored (the paper cuts
    windows off there); the map is clamped to 0–1. Computed by kornia's `guided_blur`.

    The picture is the photograph at its own resolution, up to 1,024 pixels on its longer side, for any size of the
    model's input: edges are exact to the pixel. Where a cell is 32 pixels or more, a and b are computed on every second
    pixel, from 48 on every third and so on, and upsampled bilinearly (the fast guided filter). a and b are smooth; the
    edges come from the photograph itself.

    Args:
        picture: `[B, 3, H, W]` RGB in 0–1.
        maps: `[B, P, H, W]` in 0–1, upsampled.
        cell: height and width in pixels of one cell of the map's grid.

    Returns:
        `[B, P, H, W]` float32 in 0–1.

    Example:
        >>> from cliploc import Localizer
        >>> localizer = Localizer("mini", method="cam", refine=["guided"])
    """
    from kornia.filters import guided_blur

    every = max(1, min(min(cell) // SAMPLES, *maps.shape[-2:]))
    height, width = (  # no more can be mirrored
        2 * every * min(one // every, side // every - 1) + 1 for one, side in zip(cell, maps.shape[-2:], strict=True)
    )
    parts = [
        guided_blur(picture, part, (height, width), EPS, border_type="reflect", subsample=every, separable=True)
        for part in torch.split(maps, AT_ONCE, dim=1)
    ]
    return torch.cat(parts, dim=1).clamp(0, 1)
