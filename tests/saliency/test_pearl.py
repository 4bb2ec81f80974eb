"""PEARL against its equation on three towers."""

import math

import pytest
import torch
from torch import Tensor

from tests.saliency.plain_vit import TOWERS, assert_equal, plain_vit


def inverse_root(gram: Tensor) -> Tensor:
    """Five Newton–Schulz steps for the inverse square root of a matrix whose norm is about 1."""
    eye = torch.eye(len(gram))
    y, z = gram.clone(), eye.clone()
    for _ in range(5):
        t = (3 * eye - z @ y) / 2
        y, z = y @ t, t @ z
    return z


def align(prefix: int, key_weight: float):
    def gather(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = [0.0] * prefix + [float(row.norm()) for row in q[prefix:]]
        weights = [weight / sum(weights) for weight in weights]
        q_mean = sum(weight * row for weight, row in zip(weights, q, strict=True))
        k_mean = sum(weight * row for weight, row in zip(weights, k, strict=True))
        q_centred, k_centred = q - q_mean, k - k_mean
        m = k_centred.T @ q_centred
        size = (m.T @ m).square().sum().sqrt()
        rotation = m @ inverse_root(m.T @ m / size + 1e-6 * torch.eye(len(m))) / size.sqrt()
        s = 1 / math.sqrt(q.shape[1])
        logits = s * q @ (k @ rotation).T + key_weight * s * k_centred @ k_centred.T
        return torch.softmax(logits, dim=1) @ v

    return gather


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("key_weight", [0.08, 1.5])
def test_patches_gather_by_keys_turned_onto_queries(kind: str, key_weight: float) -> None:
    vit = plain_vit(kind)
    expected = vit.last_block(align(vit.prefix, key_weight))
    assert_equal(vit.ours("pearl", key_weight=key_weight), expected)
    if key_weight == 0.08:
        assert_equal(vit.ours("pearl"), expected)
