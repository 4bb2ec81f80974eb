"""How a frozen tower computes: its precision, attention, resized positions."""

import functools
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import UsageError
from cliploc.options import DTYPES, PRECISIONS
from cliploc.towers.tower import PositionRule


# ---------------------------------------------------------------------------------------------------------- precision
def resolve_precision(precision: str, device: str) -> torch.dtype:
    """The dtype of "fp32", "bf16", "fp16" or "auto": bf16 where native, else fp32; fp16's range is too small."""
    if precision == "auto":
        return torch.bfloat16 if native_bf16(torch.device(device)) else torch.float32
    if precision not in DTYPES:
        raise UsageError(f"expected precision to be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return getattr(torch, DTYPES[precision])


def precision_name(dtype: torch.dtype) -> str:
    """The name of a dtype, as `resolve_precision` takes it; torch's own for any other."""
    torchs_name = str(dtype).removeprefix("torch.")
    return {theirs: ours for ours, theirs in DTYPES.items()}.get(torchs_name, torchs_name)


@functools.cache
def native_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself; a CPU that does not emulates it slowly, and torch does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    return device.type == "cpu" and not _processor().isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))


def _processor() -> set[str]:
    """The words that Linux says about the processor: its maker and what it can do; none elsewhere."""
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


# ---------------------------------------------------------------------------------------------------------- attention
def attention_weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Attention weights `[B, H, T, T]` float32, by plain products, which also have fast batched gradients."""
    return (q.float() @ k.float().transpose(-2, -1) * scale).softmax(dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(qkᵀ·scale)·v, `[B, H, t, e]`: fused, but for bfloat16 on a CPU, where two products are faster."""
    if v.dtype == torch.bfloat16 and v.device.type == "cpu":
        return (q * scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


# ---------------------------------------------------------------------------------------------------------- positions
def resize_positions(
    positions: Tensor, prefix: int, learnt: tuple[int, int], grid: tuple[int, int], rule: PositionRule = "antialiased"
) -> Tensor:
    """Position embeddings `[prefix+N, d]` → `[prefix+h·w, d]`, bicubic; "dino": by (h + 0.1) / h₀, as Caron 2021."""
    if grid == learnt:
        return positions
    first, patches = positions[:prefix], positions[prefix:]
    patches = patches.T.reshape(1, -1, *learnt)  # [1, d, h, w]
    if rule == "dino":
        scale = [(new + 0.1) / old for new, old in zip(grid, learnt, strict=True)]
        patches = F.interpolate(patches.float(), scale_factor=scale, mode="bicubic", align_corners=False)
    else:
        patches = F.interpolate(patches.float(), size=grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, patches[0].flatten(1).T.to(first.dtype)])
