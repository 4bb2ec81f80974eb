"""LPOSS: label propagation over the patches, between patches that are near and have similar features."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import Context
from cliploc.refine import refinement
from cliploc.refine._propagation import normalized, propagate
from cliploc.refine.affinity import directions
from cliploc.towers.tower import Needs

POWER = 3  # γ of the paper
SIGMA = 0.01  # for each pixel of distance
NEAREST = 400  # most similar places that a place is linked to
TOLERANCE = 1e-6


@refinement(
    "lposs",
    title="LPOSS",
    paper="Stojnić et al. 2025, LPOSS: Label Propagation Over Patches and Pixels, CVPR",
    on="grid",
    needs=lambda backbone: Needs(features=(backbone.middle_stage,)),
)
def lposs(ctx: Context, maps: Tensor) -> Tensor:  # [B, P, h, w]
    """map′ = (1 − α) (I − α Ŵ)⁻¹ map, α 0.95, Ŵ = D^-½ (V + Vᵀ) D^-½ with a zero diagonal.

    V_ij = max(0, cos(F_i, F_j))³ · exp(−0.01 · distance of the places i and j in pixels of the input), for the 400
    places j whose features are most like those of i, else 0. D has the row sums. Solved by conjugate gradients to a
    residual of 1e-6, in at most 50 steps. The factor 1 − α keeps the scale of the values.

    Where we differ: F are the guide's features, or, without a guide, those of the tower's middle stage minus their mean
    over the picture, as in `affinity`; the authors take the values v of the last block of a DINO tower. Their labels
    are cosines between patches and names, ours the method's maps in 0–1.

    Where their sources differ: their configuration does not square the distance (`pix_dist_pow: 1.0`), as their
    function would; their solver stops after 50 steps or after 10. With ours, the residual ends it after 20 to 30 steps.
    """
    key = "lposs"
    if key not in ctx.cache:
        features = ctx.places.float()
        # Without the mean taken away, all places would be similar: docs/studies/refinement.md.
        places = directions(features) if ctx.guide is None else F.normalize(features.flatten(2).transpose(1, 2), dim=2)
        height, width = ctx.images.shape[-2:]
        h, w = features.shape[-2:]
        ctx.cache[key] = normalized(graph(places, (h, w), (height / h, width / w)))  # [B, N, N]
    pairs = zip(ctx.cache[key], maps.float().flatten(2), strict=True)  # the matrices are symmetric
    return torch.stack([propagate(matrix.__rmatmul__, heat, TOLERANCE) for matrix, heat in pairs]).view(maps.shape)


def graph(places: Tensor, grid: tuple[int, int], cell: tuple[float, float]) -> Tensor:
    """W = V + Vᵀ with a zero diagonal: unit vectors `[B, N, C]`, cells of `cell` pixels → `[B, N, N]`."""
    h, w = grid
    alike = places @ places.transpose(1, 2)  # [B, N, N]
    if h * w > NEAREST:
        values, nearest = alike.topk(NEAREST, dim=2)
        alike = torch.zeros_like(alike).scatter_(2, nearest, values)
    down, across = (side * torch.arange(count, device=places.device) for side, count in zip(cell, grid, strict=True))
    centres = torch.cartesian_prod(down, across).float()  # [h·w, 2]
    weights = alike.clamp(min=0) ** POWER * (-SIGMA * torch.cdist(centres, centres)).exp()
    weights = weights + weights.transpose(1, 2)
    weights.diagonal(dim1=1, dim2=2).zero_()
    return weights
