"""Grad-ECLIP: values of the last block, weighted by the gradient of its output and the similarity of query and key."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import AttentionRule, Context, DenseReading, Needs, attend, patches_of, saliency
from cliploc.methods._infra.gradients import differentiable, each_prompt, jacobian_products, prompt_scores
from cliploc.towers.tower import join_heads, split_heads


@saliency(
    "grad_eclip",
    title="Grad-ECLIP",
    paper="Zhao et al. 2024, Gradient-based Visual Explanation for Transformer-based CLIP, ICML",
    family="gradient",
    towers=("vit",),
    needs=lambda published=False: Needs(dense=1) if published else Needs(ends=(-1,), dense=1),
    relu=True,
    threshold=0.05,
    poolings=("class token",),
)
def grad_eclip(ctx: Context, published: bool = False) -> Tensor:  # [B, P, h, w]
    """map_t = ReLU(Σ_d g_td · v_id · n_i): values that would raise the score, at patches the class token looks for.

    o is what the last block's heads gather for the class token, before the output projection; g_t = ∂s_t/∂o, s_t the
    cosine of image and prompt; n_i = cos(q_cls, k_i), min–max normalised over the patches. q, k and v are those of all
    heads, concatenated. Not defined without a class token.

    The authors' code, which `published` repeats, runs the last block again with one head over all d channels, which is
    not how the tower was trained, and applies the output projection to q and k before their cosine.

    Args:
        published: the authors' one-head form.
    """
    tower, trace = ctx.transformer, ctx.trace
    patches = slice(tower.prefix_tokens, None)
    with torch.no_grad():
        if published:
            rules: tuple[AttentionRule, ...] = (lambda q, k, v, scale: q, lambda q, k, v, scale: k)  # noqa: ARG005
            q, k = (tower.path(trace, DenseReading(rule)) for rule in rules)  # each [B, T, d]
        else:
            q, k = (join_heads(part) for part in trace.projections[-1][:2])
        alike = F.cosine_similarity(q[:, :1].float(), k[:, patches].float(), dim=-1)  # [B, N]
        low, high = torch.aminmax(alike, dim=1, keepdim=True)
        alike = (alike - low) / (high - low).clamp(min=torch.finfo(alike.dtype).tiny)
        values = join_heads(trace.projections[-1][2][:, :, patches]).float()  # [B, N, d]
    with differentiable():
        end = tower.end(trace.entering[-1], -1, trace.grid, _one_head) if published else ctx.end(-1)
        pooled, _ = tower.pool(end.tokens())  # [B, D]
        scores = prompt_scores(ctx, F.normalize(pooled.float(), dim=-1))  # [B, P]
        maps = []
        for (gradient,) in jacobian_products(scores, (end.gathered,), each_prompt(scores), keep=True):
            wanted = gradient[:, :, :, 0].flatten(2)  # [B, p, d]: the class token's
            maps.append(torch.einsum("bpd,bnd->bpn", wanted, values) * alike[:, None])
    return patches_of(ctx, torch.cat(maps, dim=1))


def _one_head(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:  # noqa: ARG001
    """softmax(qkᵀ/√d)·v over all channels at once, given back in heads: `[B, H, T, d/H]`."""
    ours, theirs, values = (join_heads(x).float() for x in (q, k, v))  # each [B, T, d]
    return split_heads(attend(ours, theirs, values, ours.shape[-1] ** -0.5), v.shape[1])
