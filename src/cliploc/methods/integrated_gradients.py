"""Integrated Gradients: gradients at the pixels, averaged on the way from an empty picture to the picture."""

from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cliploc.methods import Context, Count, on_grid, pixel_gradients, saliency

Empty: TypeAlias = Literal["mean", "black"]


@saliency(
    "integrated_gradients",
    title="Integrated Gradients",
    paper="Sundararajan, Taly & Yan 2017, Axiomatic Attribution for Deep Networks, ICML",
    family="gradient",
    relu=True,
    threshold=0.05,
)
def integrated_gradients(ctx: Context, steps: Count = 50, empty: Empty = "mean") -> Tensor:  # [B, P, h, w]
    """map_t = sum over the cell's pixels of Σ_c (x − x′) ⊙ ∫₀¹ ∂s_t/∂x (x′ + α(x − x′)) dα, x′ an empty picture.

    s_t is the cosine. The values add up to s_t(x) − s_t(x′), where the cells of the tower's grid are equally large; the
    paper draws pixels. It approximates the integral by a Riemann sum of 20 to 300 steps; we take the Gauss–Legendre
    rule, as captum does by default, which needs fewer. The paper's example of x′ is a black picture, from which black
    things get no heat; ours is the mean colour, 0 of the normalised pixels, as in captum and in our Score-CAM. The same
    as `captum.attr.IntegratedGradients`.

    Args:
        steps: how many pictures on the way; each is one forward and, for each prompt, one backward pass of the tower.
        empty: x′, "mean" or "black".
    """
    device = ctx.text.device
    nodes, weights = (torch.from_numpy(part).float().to(device) for part in np.polynomial.legendre.leggauss(steps))
    shares = ((1 + nodes) / 2).view(-1, 1, 1, 1)  # α
    images = ctx.images.float()
    start = torch.zeros_like(images[0])  # [3, H, W]
    if empty == "black":
        start = ctx.backbone.normalize(start).float()

    def between(picture: Tensor, first: int, last: int) -> Tensor:
        return start + shares[first:last] * (picture - start)

    gradients = pixel_gradients(ctx, between, weights / 2)  # [B, P, 3, H, W]
    with torch.no_grad():
        cells = on_grid(ctx, (gradients * (images - start)[:, None]).sum(dim=2))
        return cells * (images[0, 0].numel() / cells[0, 0].numel())  # sums: the map adds up to the change of the score
