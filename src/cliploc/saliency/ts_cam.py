"""TS-CAM: the class token's attention, summed over blocks, says where things are; dense similarity says what."""

from __future__ import annotations

import torch
from torch import Tensor

from cliploc.saliency._infra.attention import Blocks, blocks_of, class_attention, last_blocks, patches_of
from cliploc.saliency._infra.registration import saliency
from cliploc.saliency._infra.rules import dense_cosine
from cliploc.schema import Context, Needs


def summed_attention(ctx: Context, blocks: Blocks = "all") -> Tensor:
    """A* = Σ_l mean_H A^l[class token → patches], `[B, h, w]`: TS-CAM's attention, whatever gives the semantics.

    On a tower with an attention pool, the pool's attention alone: its query looks once.

    Raises:
        UsageError: the tower averages its patches.
    """
    chosen = (-1,) if ctx.trace.pool_attention is not None else blocks_of(ctx, blocks)
    return patches_of(ctx, torch.stack([class_attention(ctx, block) for block in chosen]).sum(dim=0))


@saliency(
    "ts_cam",
    title="TS-CAM, zero-shot",
    paper="Gao et al. 2021, TS-CAM: Token Semantic Coupled Attention Map for Weakly Supervised Object Localization, "
    "ICCV; dense similarity: Zhou, Loy & Dai 2022, Extract Free Dense Labels from CLIP, ECCV",
    family="attention",
    towers=("vit",),
    needs=lambda blocks="all": Needs(features=(-1,), attention=last_blocks(blocks)),
    relu=True,
    threshold=0.4,
)
def ts_cam(ctx: Context, blocks: Blocks = "all") -> Tensor:
    """map_t = A* ⊙ S_t, A* = Σ_l mean_H A^l[class token → patches], S_t = cos(r, g_t).

    The paper trains a convolution over the last tokens on image labels for S. Here nothing is trained: r is MaskCLIP's
    reading of every patch, the last block's values alone in the joint space. A* reads no text. Where a patch speaks
    against the prompt the product is cut at 0, which the paper does not need: its trained maps of the right class are
    positive, and a much-attended negative patch would else fall below a patch that nothing attends to.

    Args:
        ctx: attention of the blocks, and the tokens entering the last one.
        blocks: over how many of the last blocks the attention is summed, "all" in the paper.

    Returns:
        `[B, P, h, w]` float32, raw: the ReLU follows in the `Localizer`.

    Raises:
        UsageError: the tower averages its patches; a number of blocks below 1, or more than there are.

    Example:
        >>> from cliploc import Localizer
        >>> Localizer("ViT-B-16", method="ts_cam")("cat.jpg", ["cat"]).heatmaps.shape  # doctest: +SKIP
        (1, 375, 500)
    """
    with torch.no_grad():
        return summed_attention(ctx, blocks)[:, None] * dense_cosine(ctx)
