"""Attention of a frozen tower: fused where nobody reads the weights, or by plain products where somebody does."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.backbones._precision import native_bf16

WEIGHTS_AT_ONCE = 2**20  # 2 MiB in bfloat16: more do not stay in a processor's cache between the two products


def attention_weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Attention weights `[B, H, T, T]` float32, by plain products, which also have fast batched gradients."""
    return (q.float() @ k.float().transpose(-2, -1) * scale).softmax(dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(qkᵀ·scale)·v for t queries: `[B, H, t, d]`, `[B, H, T, d]`, `[B, H, T, e]` → `[B, H, t, e]`.

    Torch's fused attention, whose batched gradients are slow. On a CPU it is no faster in half precision than in
    float32, which is therefore used. But where the processor multiplies in bfloat16, two plain products take half of
    the time, if the weights between them stay in its cache. The weights are then rounded to bfloat16, as everything
    else in the tower is.
    """
    if v.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    recorded = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if q.dtype == k.dtype == v.dtype == torch.bfloat16 and not recorded and native_bf16(v.device):
        return _in_parts(q, k, v, scale)
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=scale).to(v.dtype)


def _in_parts(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """`attend` for a few heads at a time."""
    gathered = v.new_empty(*q.shape[:-1], v.shape[-1])  # [B, H, t, e]
    at_once = max(1, WEIGHTS_AT_ONCE // (q.shape[-2] * k.shape[-2]))
    heads = (torch.split(one.flatten(0, 1), at_once) for one in (q * scale, k, v, gathered))
    for queries, keys, values, into in zip(*heads, strict=True):  # each [n, t or T, d or e]
        torch.bmm(torch.bmm(queries, keys.transpose(1, 2)).softmax(dim=-1), values, out=into)
    return gathered
