"""LCTR: what the class token reaches through every other token says where; dense similarity says what."""

from __future__ import annotations

import torch
from torch import Tensor

from cliploc.saliency._infra.attention import Blocks, blocks_of, class_attention, last_blocks, patches_of
from cliploc.saliency._infra.registration import saliency
from cliploc.saliency._infra.rules import dense_cosine
from cliploc.schema import Context, Needs


def relational_attention(ctx: Context, blocks: Blocks = "all") -> Tensor:
    """mean_l r^l, `[B, h, w]`: LCTR's relational patch attention (RPAM), whatever gives the semantics.

    r^l = mean over tokens j of a_j · M[j → patches], a = mean_H A^l[class token → all], M = mean_H A^l[all → patches].
    On a tower with an attention pool, a is the pool's attention in every block.

    Raises:
        UsageError: the tower averages its patches.
    """
    reached = []
    for block in blocks_of(ctx, blocks):
        attention = ctx.trace.attention[block].mean(dim=1)  # [B, T, T]
        row = class_attention(ctx, block)  # [B, T]
        reached.append(torch.einsum("bt,btu->bu", row, attention) / row.shape[1])  # [B, T]
    return patches_of(ctx, torch.stack(reached).mean(dim=0))


@saliency(
    "lctr",
    title="LCTR, zero-shot",
    paper="Chen et al. 2022, LCTR: On Awakening the Local Continuity of Transformer for Weakly Supervised Object "
    "Localization, AAAI; dense similarity: Zhou, Loy & Dai 2022, Extract Free Dense Labels from CLIP, ECCV",
    family="attention",
    towers=("vit",),
    needs=lambda blocks="all": Needs(features=(-1,), attention=last_blocks(blocks)),
    relu=True,
    threshold=0.4,
)
def lctr(ctx: Context, blocks: Blocks = "all") -> Tensor:
    """map_t = mean_l r^l ⊙ ReLU(S_t), r^l what the class token reaches through every other token, S_t = cos(r, g_t).

    The paper trains the semantic maps S (its cue-digging module) on image labels. Here nothing is trained: S is
    MaskCLIP's dense similarity, the last block's values alone in the joint space. r^l reads no text.

    Args:
        ctx: attention of the blocks, and the tokens entering the last one.
        blocks: over how many of the last blocks r^l is averaged, "all" in the paper.

    Returns:
        `[B, P, h, w]` float32, raw: the ReLU follows in the `Localizer`, as r^l ≥ 0.

    Raises:
        UsageError: the tower averages its patches; a number of blocks below 1, or more than there are.

    Example:
        >>> from cliploc import Localizer
        >>> Localizer("ViT-B-16", method="lctr")("cat.jpg", ["cat"]).heatmaps.shape  # doctest: +SKIP
        (1, 375, 500)
    """
    with torch.no_grad():
        return relational_attention(ctx, blocks)[:, None] * dense_cosine(ctx)
