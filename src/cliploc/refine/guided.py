"""Edge-aware upsampling: the coarse heat takes over the edges of the photograph."""

from __future__ import annotations

from torch import Tensor

from cliploc.refine._registration import refinement

EPS = 1e-3  # colour variance (0–1 values) above which a step is an edge


@refinement(
    "guided",
    title="Guided filter",
    paper="He et al. 2010, Guided Image Filtering, ECCV",
    on="input",
    threshold=lambda tau: 1 - (1 - tau) ** 2,  # the means of windows are warmer; tools/choose_thresholds.py --refine
    package="kornia",
)
def guided(picture: Tensor, maps: Tensor, cell: int) -> Tensor:
    """In every window the map is a linear function of the picture's colours: map′_i = mean_k(a_k)ᵀ I_i + mean_k(b_k).

    a_k = (Σ_k + ε U)⁻¹ cov_k(I, map), b_k = mean_k(map) − a_kᵀ mean_k(I), over windows k of 2·cell + 1 pixels round
    pixel i: as wide as one cell of the grid was blurred when it was upsampled. ε is 0.001. Borders are mirrored (the
    paper cuts windows off there); the map is cut to 0–1. kornia's `guided_blur`, for all prompts of a picture at once.

    The picture is the model's input, so a larger image size follows finer edges.

    Args:
        picture: `[B, 3, H, W]` RGB in 0–1.
        maps: `[B, P, H, W]` in 0–1, upsampled.
        cell: how many pixels one cell of the map's grid was wide.

    Returns:
        `[B, P, H, W]` float32 in 0–1.

    Example:
        >>> from cliploc import Localizer
        >>> localizer = Localizer("mini", method="cam", refine=["guided"])
    """
    from kornia.filters import guided_blur

    height, width = ((2 * min(cell, side - 1) + 1) for side in maps.shape[-2:])  # no more can be mirrored
    filtered: Tensor = guided_blur(picture, maps, (height, width), EPS, border_type="reflect", separable=True)
    return filtered.clamp(0, 1)
