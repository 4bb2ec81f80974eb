"""TS-CAM: the class token's attention, summed over blocks, shows where things are; semantic maps show what."""

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
    """map_t = A* ⊙ ReLU(S_t), A* = Σ_l mean_H A^l[class token → patches], which does not depend on the text.

    With a trained head (`cliploc train tscam`), S_t is the paper's convolution over the last tokens. Without one,
    nothing is trained: S_t is MaskCLIP's cosine of every patch with the prompt, see `maskclip`. The paper has no ReLU:
    there a negative patch with much attention is below a patch without any. A CNN has no class token: with a head
    trained on its last features, A* = 1.

    Args:
        ctx: attention of the blocks, and the tokens entering the last one, or what the head needs.
        blocks: how many of the last blocks the attention is summed over, "all" in the paper.
        head: a head trained for this method on this tower. The `Localizer` takes the path of its file.

    Returns:
        `[B, P, h, w]` float32, raw: the ReLU follows in the `Localizer`.

    Raises:
        UsageError: the tower has average pooling, or `blocks` is below 1 or above the tower's number of blocks.

    Example:
        >>> from cliploc import Localizer
        >>> Localizer("ViT-B-16", method="ts_cam")("cat.jpg", ["cat"]).heatmaps.shape  # doctest: +SKIP
        (1, 375, 500)
        >>> Localizer("ViT-B-16", method="ts_cam", head="head.safetensors")  # doctest: +SKIP
    """
    with torch.no_grad():
        semantics = dense_cosine(ctx) if head is None else head.semantics(ctx)  # [B, P, h, w]
        return semantics if ctx.backbone.kind == "cnn" else summed_attention(ctx, blocks)[:, None] * semantics
