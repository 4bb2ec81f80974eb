"""Class-aware attention-based affinity (CAA): a ViT's attention spreads the heat over the rest of the object."""

from __future__ import annotations

import torch
from torch import Tensor

from cliploc.method import Context
from cliploc.refine._registration import refinement
from cliploc.refine._walk import transition, walk
from cliploc.tower import Backbone, Needs, as_transformer

BLOCKS = 8  # the paper's


def _last_blocks(backbone: Backbone) -> tuple[int, ...]:
    return tuple(range(-min(BLOCKS, as_transformer(backbone).depth), 0))


@refinement(
    "caa",
    title="CAA",
    paper="Lin et al. 2023, CLIP is Also an Efficient Segmenter (CLIP-ES), CVPR",
    on="grid",
    towers=("vit",),
    needs=lambda backbone: Needs(attention=_last_blocks(backbone)),
)
def caa(ctx: Context, maps: Tensor) -> Tensor:
    """map′ = W · (B ⊙ map), W = S², S = (D + Dᵀ)/2, D the Sinkhorn-normalised patch–patch attention.

    The attention is the mean over the heads of the last 8 blocks (all, when there are fewer), without the rows and
    columns of tokens that are not patches. B is 1 inside the boxes of the map's regions above 0.4 of its maximum: heat
    spreads only from there, so that heat on other objects does not spread. Sinkhorn takes three rounds. S is computed
    once for all prompts and methods, in float64: if attention is nearly uniform, so is the map. A map that varies by no
    more than the attention's rounding becomes constant.

    The boxes differ from the authors' code in two ways. The authors convert the map to uint8 (× 255, truncated) and
    compare it with the truncated integer 0.4 · maximum; we compare the float map. They also limit right and bottom
    edges, which are exclusive, to width − 1 and height − 1, so the last column and row of patches are never inside a
    box; our boxes reach the edge.

    Args:
        ctx: attention of the last blocks.
        maps: `[B, P, h, w]` in 0–1.

    Returns:
        `[B, P, h, w]` float64.

    Example:
        >>> from cliploc import Localizer
        >>> localizer = Localizer("ViT-B-16", "openai", "grad_cam", refine=["caa"])  # doctest: +SKIP
    """
    key = "caa"
    if key not in ctx.cache:
        n = ctx.trace.grid[0] * ctx.trace.grid[1]
        blocks = [ctx.trace.attention[block].float().mean(dim=1) for block in _last_blocks(ctx.backbone)]
        ctx.cache[key] = transition(torch.stack(blocks).mean(dim=0)[:, -n:, -n:])  # [B, N, N]
    return walk(ctx.cache[key], maps)
