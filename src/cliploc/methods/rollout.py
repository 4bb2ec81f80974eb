"""Attention rollout: attention followed through all blocks; the same for every prompt."""

import torch
from torch import Tensor

from cliploc.methods import Blocks, Context, Needs, saliency
from cliploc.methods._infra.attention import blocks_of, for_every_prompt, last_blocks, patches_of, pooled_tokens


@saliency(
    "rollout",
    title="Attention rollout",
    paper="Abnar & Zuidema 2020, Quantifying Attention Flow in Transformers, ACL",
    family="attention",
    towers=("vit",),
    needs=lambda blocks="all": Needs(attention=last_blocks(blocks)),
    threshold=0.1,
    reads_text=False,
)
def rollout(ctx: Context, blocks: Blocks = "all") -> Tensor:  # [B, P, h, w]
    """R = Â^L ⋯ Â^2 Â^1 with Â^l = 0.5·mean_H A^l + 0.5·I; map = R[class token → patches], the same for every prompt.

    Rows of Â^l sum to 1 already, so the paper's re-normalisation changes nothing. One row of R is computed, from the
    last block back to the first. On a tower with an attention pool it starts as the pool's attention, mean over heads;
    with average pooling, with the same value for every patch. Packages for plain ViTs also offer the maximum or minimum
    over heads, and drop the weakest attention; the paper does neither.

    Args:
        blocks: how many of the last blocks, "all" in the paper.
    """
    with torch.no_grad():
        row = pooled_tokens(ctx)  # [B, T]
        for block in blocks_of(ctx, blocks):
            attention = ctx.trace.attention[block].mean(dim=1)  # [B, T, T]
            row = 0.5 * row + 0.5 * torch.einsum("bt,btu->bu", row, attention)
        return for_every_prompt(ctx, patches_of(ctx, row))
