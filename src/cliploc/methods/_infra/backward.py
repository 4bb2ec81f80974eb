"""LibraGrad's and AttnLRP's backward rules: while `Backward` is active, torch's functions keep values only."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Rule: TypeAlias = "Callable[..., Tensor]"  # `(function, its arguments)` → what the function would return


class Backward(TorchFunctionMode):
    """Gradients follow the rules while this context is active; what needs no gradient is computed as always."""

    def __init__(self, rules: Mapping[Any, Rule]) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule, first = self.rules.get(func), args[0] if args else None
        if rule is None or not torch.is_grad_enabled() or not isinstance(first, Tensor) or not first.requires_grad:
            return func(*args, **(kwargs or {}))
        return rule(func, *args, **(kwargs or {}))


def _layer_norm(
    _: Any, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """The standard deviation is a constant."""
    axes = tuple(range(-len(shape), 0))
    centred = x.float() - x.float().mean(dim=axes, keepdim=True)
    normed = centred / (centred.detach().square().mean(dim=axes, keepdim=True) + eps).sqrt()
    normed = normed if weight is None else normed * weight
    return (normed if bias is None else normed + bias).to(x.dtype)


def _gate(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """An activation f: f(x)/x is a constant factor of x."""
    with torch.no_grad():
        gate = torch.where(x == 0, 0.5, function(x.clone(), *args, **kwargs) / x)
    return x * gate


def _constant(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Nothing goes back through it, also where it is converted to another precision."""
    with torch.no_grad():
        result: Tensor = function(*args, **kwargs)
    return result


def _leaf(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A constant whose own gradient may be asked for, as Chefer's method does."""
    return _constant(function, *args, **kwargs).requires_grad_(True)


def _shared(function: Any, a: Any, b: Any, **kwargs: Any) -> Tensor:
    """Where both factors of a product depend on the input, each gets half of the gradient."""
    product: Tensor = function(a, b, **kwargs)
    if not all(isinstance(factor, Tensor) and factor.requires_grad and not factor.is_leaf for factor in (a, b)):
        return product
    half = product / 2
    return half + half.detach()


def _unit_length(_: Any, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:  # noqa: ARG001
    """The length is a constant."""
    return torch.div(x, torch.linalg.vector_norm(x.detach(), p, dim, keepdim=True).clamp(min=eps))


def gamma_rule(gamma: float) -> Rule:
    """LRP's γ rule, for inputs of both signs: terms of their output's own sign count 1 + γ times."""

    def rule(function: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        weight = weight.detach()
        with torch.no_grad():
            output = function(x, weight, bias)
        positive, negative = x.relu(), -(-x).relu()
        result = torch.zeros_like(output)
        for sign in (1, -1):
            like, unlike = (weight + s * gamma * (s * weight).relu() for s in (sign, -sign))
            offset = None if bias is None else bias.detach() + sign * gamma * (sign * bias.detach()).relu()
            terms = function(positive, like, offset) + function(negative, unlike)
            chosen = sign * output > 0
            share = torch.where(chosen, output / torch.where(chosen, terms.detach(), 1), 0)
            result = result + terms * share
        return result

    return rule


_NORMS_AND_GATES: dict[Any, Rule] = {
    F.layer_norm: _layer_norm,
    **dict.fromkeys((F.gelu, F.silu), _gate),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid), _constant),  # x · sigmoid(1.702 x), CLIP's activation
    **dict.fromkeys((torch.mul, Tensor.mul), _shared),
}
_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
CONSTANT_ATTENTION: dict[Any, Rule] = dict.fromkeys(_SOFTMAX, _constant)
LIBRA: dict[Any, Rule] = {**_NORMS_AND_GATES, **dict.fromkeys(_SOFTMAX, _leaf)}
ATTN_LRP: dict[Any, Rule] = {
    **_NORMS_AND_GATES,
    **dict.fromkeys((torch.matmul, Tensor.matmul, torch.bmm), _shared),
    F.normalize: _unit_length,
}
