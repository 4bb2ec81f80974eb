"""ResCLIP: NACLIP's attention in the last block, mixed with the attention that earlier blocks learnt."""

from fractions import Fraction

import torch
from torch import Tensor

from cliploc.methods import Context, DenseReading, Needs, Positive, Share, block_at, patch_cosines
from cliploc.methods._infra.attention import dense_cosine, neighbourhood, self_attention

BLOCKS = tuple(Fraction(twelfth, 12) for twelfth in (6, 7, 8, 9))  # blocks 6–9 of 12


@patch_cosines(
    "resclip",
    title="ResCLIP",
    paper="Yang et al. 2025, ResCLIP: Residual Attention for Training-free Dense Vision-language Inference, CVPR",
    needs=Needs(attention=BLOCKS, dense=1),
    threshold=0.55,
)
def resclip(ctx: Context, residual: Share = 0.5, gain: Positive = 1.0, sigma: Positive = 5.0) -> Tensor:  # [B, P, h, w]
    """map_t = cos(r, g_t), the last block's attention replaced by gain · [(1 − λ)·A₀ + λ·a]; no residual, no MLP.

    A₀ is NACLIP's attention, softmax(kkᵀ/√d_h + ω); a is the mean of the attention of blocks 6–9 of 12, head by head,
    or of the same shares of another depth. The authors choose λ and the gain for each data set; ours were chosen once,
    on the tuning pictures by `mini-vit` (λ of 0.25, 0.5, 0.75 and 1; gains of 1 and 3 give the same boxes, as ln_post
    follows). The paper's second part, which corrects the attention by a first segmentation, is not part of this method.

    Args:
        residual: λ, the share of the middle blocks' attention.
        gain: the factor of both attentions; a larger one makes the output projection's bias count less.
        sigma: of A₀'s neighbourhood ω, in patches; see `naclip`.
    """
    tower = ctx.transformer
    prior = neighbourhood(ctx.trace.grid, tower.prefix_tokens, sigma).to(ctx.backbone.device)  # [T, T]
    naclips = self_attention("k", prior)
    earlier = torch.stack([ctx.trace.attention[block_at(share, tower.depth)] for share in BLOCKS]).mean(dim=0)

    def rule(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return gain * ((1 - residual) * naclips(q, k, v, scale) + residual * earlier @ v.float())  # [B, H, T, d/H]

    return dense_cosine(ctx, DenseReading(rule))
