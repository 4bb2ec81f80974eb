"""Patch tokens: the patches as they leave the tower, each compared with the text, as dino.txt is trained."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import Context, Needs, patch_cosines, patches_of


@patch_cosines(
    "patch_tokens",
    title="Patch tokens",
    paper="Jose et al. 2025, DINOv2 Meets Text: A Unified Framework for Image- and Pixel-Level Vision-Language "
    "Alignment, CVPR",
    needs=Needs(tokens=(-1,)),
    threshold=0.4,
)
def patch_tokens(ctx: Context) -> Tensor:  # [B, P, h, w]
    """map_t = cos(x, g_t), x each patch that leaves the last block, after the head's normalisation and projection.

    dino.txt's patches are trained for this: their mean is one half of the embedding, and they are compared with that
    half of the text's. CLIP trains only its class token, so for CLIP this is the baseline that MaskCLIP and later
    methods start from. With an attention pool a patch is read through the pool's value path.

    Example:
        >>> from cliploc import Localizer
        >>> Localizer("mini-vit", method="patch_tokens")("cat.jpg", ["cat"]).heatmaps.shape
        (1, 300, 451)
    """
    tower = ctx.transformer
    with torch.no_grad():
        read = tower.read_tokens(ctx.trace.tokens[-1][:, tower.prefix_tokens :])  # [B, N, D]
        return patches_of(ctx, torch.einsum("bnd,bpd->bpn", F.normalize(read, dim=-1), ctx.patch_text))
