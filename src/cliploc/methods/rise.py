"""RISE: the picture seen through random masks; a place is hot if the masks that show it have higher scores."""

import math
from typing import Annotated, TypeAlias

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import Context, perturbed_embeddings, saliency

CELLS = 8  # cells of a mask, along each side
VISIBLE = 0.5  # probability that a cell shows the picture
SEED = 0
Budget: TypeAlias = Annotated[int, Meta(ge=16)]


@saliency(
    "rise",
    title="RISE",
    paper="Petsiuk et al. 2018, RISE: Randomized Input Sampling for Explanation of Black-box Models, BMVC",
    family="perturbation",
    threshold=0.35,
)
def rise(ctx: Context, budget: Budget = 2000) -> Tensor:  # [B, P, h, w]
    """map_t = 1/(N·0.5) · Σ_n (s_tn − s̄_t) M_n, s_tn = cos(f(x ⊙ M_n), g_t), s̄_t their mean; M_n random masks.

    A mask is a grid of 8×8 cells, each 1 with probability 0.5, enlarged (bilinear) to 9/8 of the picture's size and
    cropped to it at a random place. The N masks come from a fixed seed and are the same for all pictures of a size, so
    each masked picture is embedded once for all prompts.

    The paper takes s_tn alone. Cosines have a large common part (0.2 where they differ by 0.02), and by chance some
    places are masks by more masks than others: that would outweigh the picture. With many masks the mean changes the
    map only by a constant.

    Args:
        budget: N, how many masks.
    """
    height, width = ctx.images.shape[-2:]
    chance = torch.Generator().manual_seed(SEED)
    draws = torch.rand(budget, CELLS**2 + 2, generator=chance, dtype=torch.float32).to(ctx.images.device)

    def through(picture: Tensor, first: int, last: int) -> Tensor:
        return picture * _masks(draws[first:last], height, width).to(picture.dtype)

    embeddings = perturbed_embeddings(ctx, ("rise", height, width), budget, through)  # [B, N, D]
    with torch.no_grad():
        chunks = torch.split(draws, ctx.batch_size)
        pooled = [F.adaptive_avg_pool2d(_masks(chunk, height, width), ctx.trace.grid) for chunk in chunks]
        seen = torch.cat(pooled).flatten(1)  # [N, h·w]
        scores = torch.einsum("bnd,bpd->bpn", embeddings, ctx.text)
        scores = scores - scores.mean(dim=-1, keepdim=True)
        maps = scores @ seen / (budget * VISIBLE)  # [B, P, h·w]
    return maps.reshape(*maps.shape[:2], *ctx.trace.grid)


def _masks(draws: Tensor, height: int, width: int) -> Tensor:
    """Masks `[n, 1, H, W]` in 0–1 from uniform numbers `[n, 66]`: the cells, then where to cut."""
    cell_height, cell_width = math.ceil(height / CELLS), math.ceil(width / CELLS)
    cells = (draws[:, : CELLS**2] < VISIBLE).float().view(-1, 1, CELLS, CELLS)
    size = ((CELLS + 1) * cell_height, (CELLS + 1) * cell_width)
    large = F.interpolate(cells, size=size, mode="bilinear", align_corners=False)
    top, left = ((draws[:, CELLS**2 + i] * side).long().tolist() for i, side in enumerate((cell_height, cell_width)))
    cut = [mask[:, y : y + height, x : x + width] for mask, y, x in zip(large, top, left, strict=True)]
    return torch.stack(cut)
