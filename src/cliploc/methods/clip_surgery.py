"""CLIP Surgery: a second path of value–value attention through the last blocks, minus what all prompts share."""

from dataclasses import replace

import torch
from torch import Tensor

from cliploc.methods import Context, Count, DenseReading, Needs, dense_cosine, saliency, self_attention

SHARPNESS = 2.0  # the authors' factor on cosines before the softmax over prompts


@saliency(
    "clip_surgery",
    title="CLIP Surgery",
    paper="Li et al. 2023, CLIP Surgery for Better Explainability with Enhancement in Open-Vocabulary Tasks",
    family="attention",
    towers=("vit",),
    needs=lambda depth=6: Needs(dense=depth),
    threshold=0.5,
    prompts_interact=True,
)
def clip_surgery(ctx: Context, depth: Count = 6) -> Tensor:  # [B, P, h, w]
    """map_t = w_t·c_t − mean_u(w_u·c_u), c_t = cos(r, g_t): every patch's similarity minus what the prompts share.

    Architecture surgery: the path starts with the tokens entering the last `depth` blocks. Each block adds
    out_proj(softmax(vvᵀ/√d_h)·v), with v from the tower's unchanged tokens, and no MLP; r is the path's end.

    Feature surgery: w = softmax over prompts of 2·s_t, divided by its mean, s_t the cosine of the whole image. The
    authors multiply patch, text and weight element by element first: the same numbers by a `[N, P, D]` tensor. For a
    single prompt the map would be zero, so the redundant feature is then that of the empty name in the prompt's
    templates: map = c − r·g(""). Nothing more is subtracted from a prompt whose contrast was subtracted already.

    Args:
        depth: how many blocks; all when the tower has fewer. The authors' code edits 6.
    """
    blocks = min(depth, ctx.transformer.depth)
    if ctx.text.shape[1] == 1:
        ctx = replace(ctx, text=ctx.text - ctx.redundant)
    reading = DenseReading(self_attention("v"), blocks, residual=True, parallel=True)
    cosine = dense_cosine(ctx, reading)  # [B, P, h, w]
    if ctx.text.shape[1] == 1:
        return cosine
    scores = torch.einsum("bd,bpd->bp", ctx.trace.embedding, ctx.text)  # [B, P]
    weights = (SHARPNESS * scores).softmax(dim=-1)
    weights = weights / weights.mean(dim=-1, keepdim=True)  # [B, P]
    weighted = weights[..., None, None] * cosine
    return weighted - weighted.mean(dim=1, keepdim=True)
