"""ProxyCLIP: in the last block, places attend to places that are similar for a second tower, the guide."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import AttentionRule, Context, DenseReading, Needs, dense_cosine, patch_cosines


@patch_cosines(
    "proxyclip",
    title="ProxyCLIP",
    paper="Lan et al. 2024, ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary Segmentation, ECCV",
    needs=Needs(dense=1, guide=True),
    threshold=0.7,  # docs/studies/refinement.md
)
def proxyclip(ctx: Context, beta: float = 1.2, gamma: float = 3.0) -> Tensor:  # [B, P, h, w] on the guide's grid
    """map_t = cos(r, g_t), r = W_proj · ln_post(out_proj(A·v)): no residual, no MLP.

    A = softmax(γ (S − β mean S)), S the cosines of the guide's features, the same for all heads; negative entries are
    left out of the softmax, except a place's own, so that no row is empty. Mean S is over all pairs of places of the
    picture. The patches' values v are resized (bilinear) to the guide's grid, which is the map's. The paper's sliding
    windows are not part of this method.

    Args:
        beta: share of the mean that is subtracted.
        gamma: how sharp the softmax is.
    """
    assert ctx.guide is not None  # as `Needs.guide` says
    features = ctx.guide()  # [B, C, h', w']
    grid = (features.shape[-2], features.shape[-1])
    return dense_cosine(ctx, DenseReading(on_guides_grid(ctx, proxy_attention(features, beta, gamma), grid), grid=grid))


def on_guides_grid(ctx: Context, attention: Tensor, grid: tuple[int, int]) -> AttentionRule:
    """The rule A·v, A `[B, N', N']` the same for all heads, v of the patches resized (bilinear) to the guide's grid."""
    patches, prefix = ctx.trace.grid, ctx.transformer.prefix_tokens

    def rule(q: Tensor, k: Tensor, v: Tensor, scale: Tensor | float) -> Tensor:  # noqa: ARG001
        values = resized_values(v[:, :, prefix:], patches, grid)  # [B, H, N', d/H]
        return torch.cat([v[:, :, :prefix].float(), attention[:, None].to(values) @ values], dim=2)

    return rule


def resized_values(v: Tensor, patches: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Values `[B, H, N, d/H]` of patches, bilinear to another grid, float32."""
    b, heads, _, width = v.shape
    values = v.float().transpose(2, 3).reshape(b, heads * width, *patches)  # [B, H·d/H, h, w]
    values = F.interpolate(values, grid, mode="bilinear", align_corners=False)
    return values.view(b, heads, width, -1).transpose(2, 3)


def proxy_attention(features: Tensor, beta: float, gamma: float) -> Tensor:
    """A `[B, N, N]` of features `[B, C, h, w]`; rows sum to 1."""
    places = F.normalize(features.float().flatten(2).transpose(1, 2), dim=2)  # [B, N, C]
    alike = places @ places.transpose(1, 2)
    logits = gamma * (alike - beta * alike.mean(dim=(1, 2), keepdim=True))
    away = logits < 0
    away.diagonal(dim1=1, dim2=2).fill_(False)
    return logits.masked_fill(away, -torch.inf).softmax(dim=2)
