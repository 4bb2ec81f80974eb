"""Linear layers of a frozen tower, computed by the faster of torch's two libraries, MKL and oneDNN."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

Module = TypeVar("Module", bound=nn.Module)
FEWEST_ROWS = 32  # below, the call of oneDNN costs more time than it saves
MOST_ROWS = 1024  # at once, as oneDNN takes and gives copies; with fewer rows it packs the weights too often


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b, as `F.linear`; `[…, K]`, `[N, K]`, `[N]` → `[…, N]`.

    In float32 torch multiplies matrices with MKL, which leaves half of an AMD processor's AVX-512 unused. oneDNN, which
    torch uses for convolutions, does not: it is twice as fast on ViT-B's layers (with AVX2 only, MKL is faster). In all
    other cases, and while a graph is recorded, this is `F.linear`. The libraries sum in different orders, so results
    differ in the last bits.
    """
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
    """Replaces the plain linear layers in a module by layers that compute with `linear`; names and weights stay.

    Example:
        >>> tower = with_fast_linears(nn.Sequential(nn.Linear(3, 4), nn.GELU()))
        >>> list(tower.state_dict())
        ['0.weight', '0.bias']
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            # Exactly this class: a subclass may compute something else.
            if isinstance(child, nn.Linear) and type(child) in (nn.Linear, NonDynamicallyQuantizableLinear):
                setattr(parent, name, _Linear(child))
    return module


@functools.cache
def _mkl_is_slow() -> bool:
    """Whether this is an AMD processor with AVX-512, on which the difference was measured."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        facts = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "AuthenticAMD" in facts and "avx512f" in facts.split()
