"""What CAA does with attention, done with the likeness of features: for CNNs, which have no attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.refine._registration import refinement
from cliploc.refine._walk import transition, walk
from cliploc.schema import Context, Needs


@refinement(
    "affinity",
    title="Feature affinity",
    paper="after Lin et al. 2023, CLIP-ES, CVPR, with features in the place of attention",
    on="grid",
    needs=lambda _: Needs(features=(-1,)),
)
def affinity(ctx: Context, maps: Tensor) -> Tensor:
    """As `caa`, with D the Sinkhorn-normalised max(0, cos(A_i − Ā, A_j − Ā)) of the last features A at two places.

    Ā is the mean over the picture: what all places have in common does not make them alike. On a ViT, A are the patch
    tokens that enter the last block. No paper's method: the walk is CLIP-ES's.

    Args:
        ctx: features of the last stage.
        maps: `[B, P, h, w]` in 0–1.

    Returns:
        `[B, P, h, w]` float32.

    Example:
        >>> from cliploc import Localizer
        >>> localizer = Localizer("mini", method="cam", refine=["affinity"])
    """
    key = "affinity"
    if key not in ctx.cache:
        places = ctx.features.float().flatten(2).transpose(1, 2)  # [B, N, C]
        places = F.normalize(places - places.mean(dim=1, keepdim=True), dim=2)
        alike = (places @ places.transpose(1, 2)).relu()  # [B, N, N]
        itself = torch.eye(alike.shape[-1], dtype=torch.bool, device=alike.device)
        ctx.cache[key] = transition(alike.masked_fill(itself, 1))  # also where every place is the same
    return walk(ctx.cache[key], maps)
