"""Linear layers by oneDNN: the same products, parameters shared, a graph where one is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cliploc.backbones import _layers
from cliploc.backbones._layers import linear, with_fast_linears
from tests.tolerances import assert_rounded


@pytest.fixture(autouse=True)
def _on_any_processor(monkeypatch):
    """The fast way is right on every processor; only whether it is fast differs."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(_layers, "_mkl_is_slow", lambda: True)


@pytest.mark.parametrize("shape", [(40, 24), (2, 50, 24), (1, 4, 24), (2, 3, 20, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_product_that_torch_gives(shape, bias):
    layer = nn.Linear(24, 16, bias=bias)
    x = torch.randn(shape).transpose(0, -2).contiguous().transpose(0, -2)  # strided
    with torch.inference_mode():
        ours = linear(x, layer.weight, layer.bias)
        assert ours.layout == torch.strided
        assert_rounded(ours, F.linear(x, layer.weight, layer.bias), layer)


def test_many_rows_are_multiplied_in_parts(monkeypatch):
    layer, x = nn.Linear(24, 16), torch.randn(3, 37, 24)
    with torch.inference_mode():
        whole = linear(x, layer.weight, layer.bias)
        monkeypatch.setattr(_layers, "MOST_ROWS", 50)
        parts = linear(x, layer.weight, layer.bias)
    assert parts.shape == (3, 37, 16)
    assert_rounded(parts, whole, layer)


def test_a_graph_goes_through_it():
    layer = nn.Linear(24, 16).requires_grad_(False)
    x = torch.randn(40, 24, requires_grad=True)
    (ours,) = torch.autograd.grad(linear(x, layer.weight, layer.bias).square().sum(), x)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_torch_s_own(dtype):
    layer = nn.Linear(24, 16).to(dtype)
    with torch.no_grad():
        x = torch.randn(40, 24, dtype=dtype)
        assert torch.equal(linear(x, layer.weight, layer.bias), layer(x))


def test_layers_are_replaced_and_parameters_are_not():
    class Own(nn.Linear):
        pass

    tower = nn.Sequential(nn.Linear(4, 5), nn.Sequential(Own(5, 6), nn.MultiheadAttention(6, 2))).eval()
    before = tower.state_dict(keep_vars=True)
    own = tower[1][0]
    assert with_fast_linears(tower) is tower
    after = tower.state_dict(keep_vars=True)
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    assert type(tower[0]) is not nn.Linear
    assert tower[1][0] is own
    assert not any(module.training for module in tower.modules())
