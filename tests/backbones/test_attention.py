"""A tower's attention: the equation, in every precision, whole and a few heads at a time."""

from __future__ import annotations

import pytest
import torch

from cliploc.backbones import _layers
from cliploc.backbones._layers import attend, attention_weights
from tests.tolerances import assert_rounded

SCALE = 0.3
TERMS = 8 + 11  # of a product of query and key, and of the values; in bfloat16 only the two results are rounded


def parts(dtype=torch.float32, queries=7):
    """q `[2, 3, t, 8]`, k `[2, 3, 11, 8]`, v `[2, 3, 11, 5]`, strided as the towers' are."""
    torch.manual_seed(0)
    shapes = ((2, queries, 3, 8), (2, 11, 3, 8), (2, 11, 3, 5))
    return [torch.randn(shape).to(dtype).transpose(1, 2) for shape in shapes]


def by_the_equation(q, k, v):
    weights = (torch.einsum("bhtd,bhsd->bhts", q.double(), k.double()) * SCALE).softmax(dim=-1)
    return torch.einsum("bhts,bhse->bhte", weights, v.double())


@pytest.mark.parametrize("queries", [1, 7, 11])
def test_it_is_softmax_of_the_products_times_the_values(queries):
    q, k, v = parts(queries=queries)
    expected = by_the_equation(q, k, v)
    assert_rounded(attend(q, k, v, SCALE), expected, TERMS)
    assert_rounded(attention_weights(q, k, SCALE) @ v, expected, TERMS)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("queries", [1, 11])
def test_bfloat16_rounds_and_nothing_else(monkeypatch, native, queries):
    monkeypatch.setattr(_layers, "native_bf16", lambda device: native)
    q, k, v = parts(torch.bfloat16, queries)
    ours = attend(q, k, v, SCALE)
    assert ours.dtype == torch.bfloat16
    assert_rounded(ours, by_the_equation(q, k, v), 2)


@pytest.mark.parametrize("at_once", [1, 7 * 11, 4 * 7 * 11])  # one head; one; four of six
def test_a_few_heads_at_a_time_give_the_same(monkeypatch, at_once):
    monkeypatch.setattr(_layers, "native_bf16", lambda device: True)
    q, k, v = parts(torch.bfloat16)
    whole = attend(q, k, v, SCALE)
    monkeypatch.setattr(_layers, "WEIGHTS_AT_ONCE", at_once)
    assert_rounded(attend(q, k, v, SCALE), whole, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_goes_through_it(monkeypatch, dtype):
    monkeypatch.setattr(_layers, "native_bf16", lambda device: True)
    q, k, v = (one.detach().requires_grad_(True) for one in parts(dtype))
    ours = torch.autograd.grad(attend(q, k, v, SCALE).float().square().sum(), (q, k, v))
    expected = torch.autograd.grad(by_the_equation(q, k, v).square().sum(), (q, k, v))
    for one, other in zip(ours, expected, strict=True):
        close = 1e-4 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(one.float(), other.float(), rtol=close, atol=close)
