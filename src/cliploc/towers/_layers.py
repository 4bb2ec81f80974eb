"""How a frozen tower computes: its precision, fast linear layers and attention, resized positions, folded norms."""

import functools
import itertools
import re
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cliploc.errors import UsageError
from cliploc.options import DTYPES, PRECISIONS
from cliploc.towers.tower import PositionRule

Module = TypeVar("Module", bound=nn.Module)
FEWEST_ROWS = 32  # below, the call of oneDNN costs more time than it saves
MOST_ROWS = 1024  # at once, as oneDNN takes and gives copies; with fewer rows it packs the weights too often
WEIGHTS_AT_ONCE = 2**20  # 2 MiB in bfloat16: more do not stay in a processor's cache between the two products
_CONVOLUTION = re.compile(r"(.*)conv(.*)")


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


@functools.cache
def _mkl_is_slow() -> bool:
    """Whether this is an AMD processor with AVX-512, on which the difference to oneDNN was measured."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available) and _processor() >= {"AuthenticAMD", "avx512f"}


def _processor() -> set[str]:
    """The words that Linux says about the processor: its maker and what it can do; none elsewhere."""
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


# ------------------------------------------------------------------------------------------------------ linear layers
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, `[…, K]` → `[…, N]`; on AVX-512 in float32 by oneDNN, twice as fast on ViT-B's layers as MKL."""
    if (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and torch.backends.mkldnn.enabled
        and _mkl_is_slow()
    ):
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= MOST_ROWS:
            return _by_onednn(x, weight, bias)
        product = x.new_empty(*x.shape[:-1], len(weight))
        into = torch.split(product.view(-1, len(weight)), MOST_ROWS)
        for part, some in zip(into, torch.split(rows, MOST_ROWS), strict=True):
            part.copy_(_by_onednn(some, weight, bias))
        return product
    return F.linear(x, weight, bias)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.aten.mkldnn_linear(x.to_mkldnn(), weight, bias)
    return product.to_dense()


class _Linear(nn.Linear):
    """A linear layer that shares another layer's parameters and computes with `linear`."""

    def __init__(self, of: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = of.in_features, of.out_features
        self.weight, self.bias = of.weight, of.bias
        self.train(of.training)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def with_fast_linears(module: Module) -> Module:
    """Replaces the plain linear layers in a module by layers that compute with `linear`; names and weights stay."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            # Exactly these classes: a subclass may compute something else.
            if isinstance(child, nn.Linear) and type(child) in (nn.Linear, NonDynamicallyQuantizableLinear):
                setattr(parent, name, _Linear(child))
    return module


# ---------------------------------------------------------------------------------------------------------- attention
def attention_weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Attention weights `[B, H, T, T]` float32, by plain products, which also have fast batched gradients."""
    return (q.float() @ k.float().transpose(-2, -1) * scale).softmax(dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(qkᵀ·scale)·v, `[B, H, t, e]`: fused; in float32 on a CPU, or two products where bfloat16 is native."""
    if v.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    recorded = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if q.dtype == k.dtype == v.dtype == torch.bfloat16 and not recorded and native_bf16(v.device):
        gathered = v.new_empty(*q.shape[:-1], v.shape[-1])  # [B, H, t, e]
        at_once = max(1, WEIGHTS_AT_ONCE // (q.shape[-2] * k.shape[-2]))  # heads
        parts = (torch.split(part.flatten(0, 1), at_once) for part in (q * scale, k, v, gathered))
        for queries, keys, values, into in zip(*parts, strict=True):  # each [n, t or T, d or e]
            torch.bmm(torch.bmm(queries, keys.transpose(1, 2)).softmax(dim=-1), values, out=into)
        return gathered
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=scale).to(v.dtype)


# ---------------------------------------------------------------------------------------------------------- positions
def resize_positions(
    positions: Tensor,
    prefix: int,
    learnt: tuple[int, int],
    grid: tuple[int, int],
    rule: PositionRule = "antialiased",
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


# -------------------------------------------------------------------------------------------------------- batch norms
@torch.no_grad()
def fold_batch_norms(module: Module) -> Module:
    """Folds batch norms, eval mode, into neighbours in an `nn.Sequential`, and siblings `bn…` of `conv…`."""
    for parent in module.eval().modules():
        names = [name for name, _ in parent.named_children()]
        if isinstance(parent, nn.Sequential):
            pairs = list(itertools.pairwise(names))
        else:
            pairs = [(name, _CONVOLUTION.sub(r"\1bn\2", name)) for name in names if _CONVOLUTION.fullmatch(name)]
        for convolution_name, norm_name in pairs:
            convolution, norm = getattr(parent, convolution_name), getattr(parent, norm_name, None)
            # Exactly these classes: a subclass can do more, as timm's batch norms with an activation.
            if type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.track_running_stats:
                setattr(parent, convolution_name, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, norm_name, nn.Identity())
    return module
