"""TS-CAM: the class token's attention, summed over blocks, says where things are; semantic maps say what."""

from __future__ import annotations

import torch
from torch import Tensor

from cliploc.method import Context, TrainedHead
from cliploc.saliency._infra.attention import QUERIED, Blocks, semantic_attention_needs, summed_attention
from cliploc.saliency._infra.registration import saliency
from cliploc.saliency._infra.rules import dense_cosine


@saliency(
    "ts_cam",
    title="TS-CAM",
    paper="Gao et al. 2021, TS-CAM: Token Semantic Coupled Attention Map for Weakly Supervised Object Localization, "
    "ICCV; dense similarity: Zhou, Loy & Dai 2022, Extract Free Dense Labels from CLIP, ECCV",
    family="attention",
    towers=("vit",),
    poolings=QUERIED,
    needs=semantic_attention_needs,
    relu=True,
    threshold=0.35,
)
def ts_cam(ctx: Context, blocks: Blocks = "all", head: TrainedHead | None = None) -> Tensor:
    """map_t = A* ⊙ S_t, A* = Σ_l mean_H A^l[class token → patches]; A* reads no text.

    S_t is the paper's trained convolution over the last tokens, where a head is given (`cliploc train tscam`). Without,
    nothing is trained: S_t = cos(r, g_t), r being MaskCLIP's reading of every patch, the last block's values alone in
    the joint space. Where a patch speaks against the prompt the product is cut at 0, which the paper does not do: a
    much-attended negative patch would fall below a patch that nothing attends to. A CNN has no class token: with a head
    trained on its last features, A* = 1.

    Args:
        ctx: attention of the blocks, and the tokens entering the last one, or what the head needs.
        blocks: over how many of the last blocks the attention is summed, "all" in the paper.
        head: trained for this method on this tower; as an option of the `Localizer`, its file.

    Returns:
        `[B, P, h, w]` float32, raw: the ReLU follows in the `Localizer`.

    Raises:
        UsageError: the tower averages its patches; a number of blocks below 1, or more than there are.

    Example:
        >>> from cliploc import Localizer
        >>> Localizer("ViT-B-16", method="ts_cam")("cat.jpg", ["cat"]).heatmaps.shape  # doctest: +SKIP
        (1, 375, 500)
        >>> Localizer("ViT-B-16", method="ts_cam", head="head.safetensors")  # doctest: +SKIP
    """
    with torch.no_grad():
        semantics = dense_cosine(ctx) if head is None else head.semantics(ctx)  # [B, P, h, w]
        return semantics if ctx.backbone.kind == "cnn" else summed_attention(ctx, blocks)[:, None] * semantics
