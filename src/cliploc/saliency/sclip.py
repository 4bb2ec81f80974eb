"""SCLIP: in the last block, patches attend to patches with similar queries and to patches with similar keys."""

from __future__ import annotations

from torch import Tensor

from cliploc.method import Context
from cliploc.saliency._infra.registration import saliency
from cliploc.saliency._infra.rules import dense_cosine, self_attention
from cliploc.tower import DenseReading, Needs


@saliency(
    "sclip",
    title="SCLIP",
    paper="Wang et al. 2024, SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference, ECCV",
    family="attention",
    towers=("vit",),
    needs=Needs(dense=1),
    relu=False,
    threshold=0.45,
    cosines=True,
)
def sclip(ctx: Context) -> Tensor:
    """map_t = cos(r, g_t), the last block's attention replaced by softmax(qqᵀ/√d_h) + softmax(kkᵀ/√d_h).

    The two attentions are added, not averaged, and the block keeps its residual and its MLP, as in the authors' code.
    r is each patch after the block and the head's normalisation and projection. The paper's sliding windows over a
    larger picture and its background threshold are not part of this method: use a larger input, or `scales`.

    Args:
        ctx: with what a dense reading of the last block needs.

    Returns:
        `[B, P, h, w]` float32, raw: cosines.

    Example:
        >>> from cliploc import Localizer
        >>> localizer = Localizer("ViT-B-16", "openai", method="sclip")  # doctest: +SKIP
        >>> localizer("cat.jpg", ["cat"]).heatmaps.shape  # doctest: +SKIP
        (1, 375, 500)
    """
    return dense_cosine(ctx, DenseReading(self_attention("qk"), residual=True, mlp=True))
