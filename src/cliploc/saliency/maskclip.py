"""MaskCLIP: each patch is read by its own value vector; attention mixes in no other patch."""

from __future__ import annotations

from torch import Tensor

from cliploc.method import Context
from cliploc.saliency._infra.registration import saliency
from cliploc.saliency._infra.rules import dense_cosine
from cliploc.tower import DenseReading, Needs


@saliency(
    "maskclip",
    title="MaskCLIP",
    paper="Zhou et al. 2022, Extract Free Dense Labels from CLIP, ECCV",
    family="attention",
    towers=("vit",),
    needs=Needs(dense=1),
    relu=False,
    threshold=0.45,
    cosines=True,
)
def maskclip(ctx: Context, residual: bool = False, mlp: bool = False) -> Tensor:
    """map_t = cos(r, g_t), r = W_proj · ln_post(out_proj(v)): the last block with every patch's attention on itself.

    v are the last block's values. The paper's ViT keeps the block's residual and its MLP, which bring back what earlier
    blocks mixed into the patch. We leave both out, as later work does; options add them. The paper's refinements, key
    smoothing and prompt denoising, are not part of this method. On a tower with an attention pool a patch is read
    through the pool's value path. The corresponding method for a CNN is `cam`.

    Args:
        ctx: with what a dense reading of the last block needs.
        residual: whether the block's residual is added, as in the paper.
        mlp: whether the block's MLP follows, as in the paper.

    Returns:
        `[B, P, h, w]` float32, raw: cosines.

    Example:
        >>> from cliploc import Localizer
        >>> localizer = Localizer("ViT-B-16", "openai", method="maskclip")  # doctest: +SKIP
        >>> localizer("cat.jpg", ["cat"]).heatmaps.shape  # doctest: +SKIP
        (1, 375, 500)
    """
    return dense_cosine(ctx, DenseReading(residual=residual, mlp=mlp))
