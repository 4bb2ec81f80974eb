"""Attention in every precision."""

import pytest
import torch

from cliploc.towers._layers import attend, attention_weights
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


@pytest.mark.parametrize("queries", [1, 11])
def test_bfloat16_rounds_and_nothing_else(queries):
    q, k, v = parts(torch.bfloat16, queries)
    ours = attend(q, k, v, SCALE)
    assert ours.dtype == torch.bfloat16
    assert_rounded(ours, by_the_equation(q, k, v), 2)
