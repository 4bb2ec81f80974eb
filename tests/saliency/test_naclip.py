"""NACLIP against its equation on three towers."""

import math

import pytest
import torch
from torch import Tensor

from tests.saliency.plain_vit import TOWERS, assert_equal, plain_vit


def prior(grid: tuple[int, int], prefix: int, sigma: float) -> Tensor:
    """`[T, T]`, one pair of patches at a time."""
    height, width = grid
    bias = torch.zeros(prefix + height * width, prefix + height * width)
    for a in range(height * width):
        for b in range(height * width):
            rows, columns = a // width - b // width, a % width - b % width
            bias[prefix + a, prefix + b] = math.exp(-(rows**2 + columns**2) / (2 * sigma**2))
    return bias


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("sigma", [5.0, 0.7])
def test_patches_gather_by_keys_and_nearness(kind: str, sigma: float) -> None:
    vit = plain_vit(kind)
    bias = prior(vit.grid, vit.prefix, sigma)

    def gather(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(k @ k.T / k.shape[1] ** 0.5 + bias, dim=1) @ v

    expected = vit.last_block(gather)
    assert_equal(vit.ours("naclip", sigma=sigma), expected)
    if sigma == 5.0:
        assert_equal(vit.ours("naclip"), expected)
