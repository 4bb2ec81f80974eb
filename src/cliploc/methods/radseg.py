"""RADSeg: places attend to those that the last block made alike, and once more to those alike after it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import Context, DenseReading, Positive, patch_cosines, split_heads
from cliploc.methods._infra.attention import attend, cosines, patches_of, softmax_from_zero


@patch_cosines(
    "radseg",
    title="RADSeg",
    paper="Alama et al. 2025, RADSeg: Unleashing Parameter and Compute Efficient Zero-Shot Open-Vocabulary "
    "Segmentation Using Agglomerative Models, arXiv 2511.19704",
    threshold=0.35,
)
def radseg(ctx: Context, scra: Positive = 10.0, scga: Positive = 10.0) -> Tensor:  # [B, P, h, w]
    """map_t = cos(head(y), g_t), by the last block's attention computed twice, and a mean over places that are alike.

    Self-correlating recursive attention: o = out_proj(softmax(qkᵀ/√d_h)·v), cut into heads of d_h numbers;
    S = scra · cos(o_i, o_j) in each head; the block gathers softmax(S)·v instead, entries below 0 left out, and goes on
    with its residual and MLP. Self-correlating global aggregation: x are its patches after the tower's last norm, where
    it has one; C = cos(x_i, x_j); y = softmax(scga · (C − mean C))·x, entries below 0 left out. Both as in the authors'
    code.

    Made for C-RADIO, whose head for the class token reads the patches. The second step sees one view: the authors join
    the features of their windows (336 pixels, every 224 or 112) before it, here the maps of views are joined after it.
    Their softmax over names, the names that it drops, and their masks of SAM are not part of this method.

    Args:
        scra: factor of the first cosines.
        scga: factor of the second.
    """
    tower = ctx.transformer

    def recursive(q: Tensor, k: Tensor, v: Tensor, scale: Tensor | float) -> Tensor:
        output = tower.attention_output(ctx.trace, attend(q.float(), k.float(), v.float(), scale))  # [B, T, d]
        return softmax_from_zero(cosines(split_heads(output.float(), q.shape[1])) * scra) @ v.float()

    with torch.no_grad():
        tokens = tower.path(ctx.trace, DenseReading(recursive, residual=True, mlp=True))
        patches = tower.normed_tokens(tokens[:, tower.prefix_tokens :]).float()  # [B, N, d]
        near = cosines(patches)
        patches = softmax_from_zero((near - near.mean(dim=(1, 2), keepdim=True)) * scga) @ patches
        read = F.normalize(tower.read_normed(patches.to(tokens.dtype)).float(), dim=-1)  # [B, N, D]
        return patches_of(ctx, torch.einsum("bnd,bpd->bpn", read, ctx.patch_text))
