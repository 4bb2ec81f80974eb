"""ClearCLIP: in the last block, patches attend to patches with similar queries; no residual and no MLP."""

from __future__ import annotations

from torch import Tensor

from cliploc.method import Context
from cliploc.saliency._infra.registration import saliency
from cliploc.saliency._infra.rules import dense_cosine, self_attention
from cliploc.tower import DenseReading, Needs


@saliency(
    "clearclip",
    title="ClearCLIP",
    paper="Lan et al. 2024, ClearCLIP: Decomposing CLIP Representations for Dense Vision-Language Inference, ECCV",
    family="attention",
    towers=("vit",),
    needs=Needs(dense=1),
    relu=False,
    threshold=0.45,
    cosines=True,
)
def clearclip(ctx: Context) -> Tensor:
    """map_t = cos(r, g_t), r = W_proj · ln_post(out_proj(softmax(qqᵀ/√d_h)·v)): no residual, no MLP.

    The paper finds that the residual carries what all patches have in common and hides their differences. Its sliding
    windows over a larger picture are not part of this method: use a larger input, or `scales`.

    Args:
        ctx: with what a dense reading of the last block needs.

    Returns:
        `[B, P, h, w]` float32, raw: cosines.

    Example:
        >>> from cliploc import Localizer
        >>> localizer = Localizer("ViT-B-16", "openai", method="clearclip")  # doctest: +SKIP
        >>> localizer("cat.jpg", ["cat"]).heatmaps.shape  # doctest: +SKIP
        (1, 375, 500)
    """
    return dense_cosine(ctx, DenseReading(self_attention("q")))
