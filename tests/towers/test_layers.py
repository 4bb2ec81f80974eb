"""Attention in every precision, and batch norms folded."""

import copy

import pytest
import torch
from torch import nn

from cliploc.towers._layers import attend, attention_weights, fold_batch_norms
from tests.tiny import seeded
from tests.tolerances import assert_rounded
from tests.towers.small_clip import season, small_clip

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


@pytest.mark.parametrize("queries", [1, 11])
def test_bfloat16_rounds_and_nothing_else(queries):
    q, k, v = parts(torch.bfloat16, queries)
    ours = attend(q, k, v, SCALE)
    assert ours.dtype == torch.bfloat16
    assert_rounded(ours, by_the_equation(q, k, v), 2)


def batch_norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def test_folded_tower_gives_the_same_numbers():
    visual = small_clip().visual
    folded = fold_batch_norms(copy.deepcopy(visual))
    assert batch_norms(visual) == 3 + 4 * 4
    assert batch_norms(folded) == 0
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = visual(images), folded(images)
    assert (found - expected).norm() / expected.norm() < 1e-5


class Named(nn.Module):
    """A convolution and a norm by ResNet's names, run in that order."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn1(self.conv1(x))


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), 0),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), 1),
        (lambda: Named(nn.BatchNorm2d(4)), 0),
    ],
    ids=["sequential", "norm first", "named"],
)
def test_only_known_patterns_are_folded(build, left):
    module = seeded(build, 1).eval()
    season(module)
    folded = fold_batch_norms(copy.deepcopy(module))
    images = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert_rounded(folded(images), module(images), module)
    assert batch_norms(folded) == left
