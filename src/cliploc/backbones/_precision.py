"""The precision that a tower runs in: fp32, bf16, fp16, or automatic by device."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from cliploc.config import DTYPES, PRECISIONS
from cliploc.errors import UsageError


def resolve_precision(precision: str, device: str) -> torch.dtype:
    """The dtype of a precision's name.

    Args:
        precision: "fp32", "bf16", "fp16" or "auto": bf16 where the device computes in it natively, else fp32. "auto" is
            never fp16, whose range is too small for some CLIP towers.

    Example:
        >>> resolve_precision("bf16", "cpu")
        torch.bfloat16
    """
    if precision == "auto":
        return torch.bfloat16 if native_bf16(torch.device(device)) else torch.float32
    if precision not in DTYPES:
        raise UsageError(f"expected precision to be one of {', '.join(PRECISIONS)}, got {precision!r}")
    dtype: torch.dtype = getattr(torch, DTYPES[precision])
    return dtype


def precision_name(dtype: torch.dtype) -> str:
    """The name of a dtype, as `resolve_precision` takes it; torch's own for any other.

    Example:
        >>> precision_name(torch.bfloat16)
        'bf16'
    """
    torchs_name = str(dtype).removeprefix("torch.")
    return {theirs: ours for ours, theirs in DTYPES.items()}.get(torchs_name, torchs_name)


@functools.cache
def native_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself; a CPU that does not emulates it slowly."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    if device.type != "cpu":
        return False
    try:  # torch emulates bf16 slowly on any processor, and has no public function that tells native support
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags
