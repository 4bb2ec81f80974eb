"""Attention rules that replace the attention of a ViT's last blocks for a dense reading of its patches.

Pure functions, each a `DenseReading.rule`: `(q, k, v, scale) → out`. Attention is fused: `[T, T]` weights are never
stored.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.method import Context
from cliploc.tower import AttentionRule, DenseReading


def self_attention(parts: str, prior: Tensor | None = None) -> AttentionRule:
    """The rule Σ_x softmax(x xᵀ·scale + prior)·v: every token attends to similar tokens.

    Args:
        parts: which of "q", "k" and "v" x stands for: "qk" is the sum of two attentions, as in SCLIP.
        prior: `[T, T]` added to the logits of each attention.
    """

    def rule(q: Tensor, k: Tensor, v: Tensor, scale: Tensor | float) -> Tensor:
        sources = {"q": q.float(), "k": k.float(), "v": v.float()}  # each [B, H, T, d/H]
        gathered = [attend(sources[part], sources[part], sources["v"], scale, prior) for part in parts]
        return torch.stack(gathered).sum(dim=0)  # [B, H, T, d/H]

    return rule


def iterated_self_attention(iterations: int, temperature: float | None = None) -> AttentionRule:
    """GEM's rule: v, k and q are each clustered `iterations` times and then attend to v; the mean of the three results.

    Before each step they are normalised to unit length in every head. A temperature replaces the block's scale.
    """

    def rule(q: Tensor, k: Tensor, v: Tensor, scale: Tensor | float) -> Tensor:
        scale = scale if temperature is None else 1 / temperature
        gathered = []
        for x in (v.float(), k.float(), q.float()):  # each [B, H, T, d/H]
            clustered = F.normalize(x, dim=-1)
            for _ in range(iterations):
                clustered = F.normalize(attend(clustered, clustered, clustered, scale), dim=-1)
            gathered.append(attend(clustered, clustered, v.float(), scale))
        return torch.stack(gathered).mean(dim=0)  # [B, H, T, d/H]

    return rule


def attend(a: Tensor, b: Tensor, v: Tensor, scale: Tensor | float, prior: Tensor | None = None) -> Tensor:
    """softmax(a bᵀ·scale + prior)·v; the scale may differ between images, which fused attention does not support."""
    return F.scaled_dot_product_attention(a * scale, b, v, attn_mask=prior, scale=1.0)


def neighbourhood(grid: tuple[int, int], prefix_tokens: int, sigma: float) -> Tensor:
    """NACLIP's prior `[T, T]`: exp(−‖p_i − p_j‖² / 2σ²) for patches at p = (row, column), 0 for other tokens."""
    places = (torch.arange(n, dtype=torch.float32) for n in grid)
    rows, columns = (torch.exp(-((one[:, None] - one) ** 2) / (2 * sigma**2)) for one in places)
    return F.pad(torch.kron(rows, columns), (prefix_tokens, 0, prefix_tokens, 0))  # [T, T]


def dense_cosine(ctx: Context, reading: DenseReading = DenseReading()) -> Tensor:
    """Cosine of every patch's reading in the joint space with g_t: `[B, P, h, w]`; see `Context.dense`."""
    with torch.no_grad():
        return torch.einsum("bdhw,bpd->bphw", F.normalize(ctx.dense(reading), dim=1), ctx.patch_text)
