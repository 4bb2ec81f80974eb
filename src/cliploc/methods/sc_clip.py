"""SC-CLIP: outlier patches repaired, patches mixed with similar ones of a middle block, and several blocks read."""

from dataclasses import replace
from fractions import Fraction
from typing import Annotated, TypeAlias

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import AttentionRule, Context, DenseReading, Needs, block_at, patch_cosines
from cliploc.methods._infra.attention import attend, cosines, patches_of, softmax_from_zero

LEVELS = tuple(Fraction(twelfth, 12) for twelfth in range(4, 11))  # blocks 4–10 of 12
EARLY, MIDDLE = Fraction(1, 3), Fraction(3, 4)  # blocks 4 and 9
NEIGHBOURS = 30
Outliers: TypeAlias = Annotated[float, Meta(ge=0, lt=1)]
CUT = 0.4  # patches whose cosine is lower are not mixed
CONTRAST = 3.0  # of the similarities, before their softmax
CLASS_SHARE = 0.3


@patch_cosines(
    "sc_clip",
    title="SC-CLIP",
    paper="Bai et al. 2024, Self-Calibrated CLIP for Training-Free Open-Vocabulary Segmentation",
    needs=Needs(tokens=LEVELS, features=(-1,)),
    threshold=0.65,
)
def sc_clip(ctx: Context, outliers: Outliers = 0.05) -> Tensor:  # [B, P, h, w]
    """map_t = cos(r, g_t), r = W_proj · ln_post(Ŝ₄ (y(x) + y(Σ_l z^l))): two passes through the last block's attention.

    1. x are the patches that enter the last block. Outliers among them (local outlier factor, 30 neighbours by squared
       distance) become the mean of those of their eight neighbours that are no outliers.
    2. S_ij = cosine of the patches that leave block 9, with the same patches repaired; x ← Ŝ x. Ŝ is S with values
       under 0.4 left out, each row with sum 1.
    3. y(x) = out_proj(½ [softmax(3·(S − mean S), without negatives) + softmax(kkᵀ/√d_h)]·v) + 0.3·z_cls: patches attend
       to patches, and the class token before the block is added. No residual, no MLP.
    4. The same for the sum of the tokens that leave blocks 4–10. Both are mixed once more by Ŝ₄, of block 4's patches.

    Blocks are those of a tower of 12, or the same shares of another depth, each once. Without a class token its term is
    left out. The outlier factor is that of Breunig et al. (2000); the authors' code takes a patch's own distance to its
    30th neighbour where that paper takes the neighbour's.

    Args:
        outliers: the share of the patches that is repaired; 0 for none.
    """
    tower, trace = ctx.transformer, ctx.trace
    prefix, grid = tower.prefix_tokens, trace.grid
    with torch.no_grad():
        last = trace.entering[-1].float()  # [B, T, d]
        odd = _outliers(last[:, prefix:], outliers)  # [B, N]
        early, middle = (trace.tokens[block_at(at, tower.depth)][:, prefix:].float() for at in (EARLY, MIDDLE))
        alike = cosines(_repaired(middle, odd, grid))  # [B, N, N]
        before = torch.cat([last[:, :prefix], _mix(_repaired(last[:, prefix:], odd, grid), alike)], dim=1)
        blocks = {block_at(at, tower.depth) for at in LEVELS}
        levels = torch.stack([trace.tokens[block].float() for block in sorted(blocks)]).sum(dim=0)  # [B, T, d]
        reading = DenseReading(_attention(alike, prefix))
        read = torch.zeros_like(early)  # [B, N, d]
        for tokens, class_source in ((before, last), (levels, levels)):
            entering = {-1: tokens.to(trace.entering[-1].dtype)}
            out = tower.path(replace(trace, entering=entering, projections={}, normed={}), reading).float()[:, prefix:]
            read += out + CLASS_SHARE * class_source[:, :1] if prefix else out
        joint = tower.read_tokens(_mix(read, cosines(early)).to(trace.entering[-1].dtype))  # [B, N, D]
        return patches_of(ctx, torch.einsum("bnd,bpd->bpn", F.normalize(joint, dim=-1), ctx.patch_text))


def _mix(patches: Tensor, alike: Tensor) -> Tensor:
    """Each patch of `[B, N, d]` becomes the mean of those like it, weighted by their cosine of at least `CUT`."""
    weights = alike * (alike >= CUT)
    return weights @ patches / weights.sum(dim=-1, keepdim=True).clamp(min=CUT)


def _attention(alike: Tensor, prefix: int) -> AttentionRule:
    """The last block's rule: patches attend to patches, half by `alike`, half by keys."""
    contrast = CONTRAST * (alike - alike.mean(dim=(1, 2), keepdim=True))
    shared = softmax_from_zero(contrast)[:, None]  # [B, 1, N, N]

    def rule(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:  # noqa: ARG001
        keys, values = k[:, :, prefix:].float(), v[:, :, prefix:].float()  # [B, H, N, d/H]
        gathered = 0.5 * (shared @ values + attend(keys, keys, values, scale))
        return torch.cat([v[:, :, :prefix].float(), gathered], dim=2)

    return rule


def _outliers(patches: Tensor, share: float) -> Tensor:
    """The patches of `[B, N, d]` with the largest local outlier factor: `[B, N]` bool, a `share` of each row."""
    count = min(NEIGHBOURS, patches.shape[1] - 1)
    if count < 1 or share == 0:
        return torch.zeros(patches.shape[:2], dtype=torch.bool, device=patches.device)
    squared = torch.cdist(patches, patches).square()  # [B, N, N]
    squared.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    near, which = squared.topk(count, largest=False)  # [B, N, count]
    furthest = near[:, :, -1:].expand_as(squared).transpose(1, 2)  # at [b, i, j] patch j's distance to its last one
    reach = torch.maximum(near, furthest.gather(2, which))
    density = 1 / reach.mean(dim=2).clamp(min=torch.finfo(reach.dtype).tiny)  # [B, N]
    factor = density[:, None].expand_as(squared).gather(2, which).mean(dim=2) / density  # [B, N]
    return factor > torch.quantile(factor, 1 - share, dim=1, keepdim=True)


def _repaired(patches: Tensor, odd: Tensor, grid: tuple[int, int]) -> Tensor:
    """Outliers become the mean of those around them that are none, where there are any: `[B, N, d]`."""
    good = (~odd).to(patches)[:, :, None]  # [B, N, 1]
    kernel = patches.new_ones(1, 1, 3, 3)

    def around(x: Tensor) -> Tensor:  # sums over 3×3 patches
        planes = x.transpose(1, 2).reshape(-1, 1, *grid)
        return F.conv2d(planes, kernel, padding=1).reshape(len(x), -1, x.shape[1]).transpose(1, 2)

    count = around(good)  # [B, N, 1]
    mean = around(patches * good) / count.clamp(min=1)
    return torch.where(odd[:, :, None] & (count > 0), mean, patches)
