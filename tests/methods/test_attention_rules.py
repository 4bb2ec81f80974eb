"""Rules by which the last block's patches gather, each against its equation, on three towers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.plain_vit import TOWERS, PlainVit, assert_equal, attend, plain_vit


def patch_tokens(vit: PlainVit) -> Tensor:
    return vit.maps(lambda image: vit.cosines(vit.entering(image)[-1]))


def clearclip(vit: PlainVit) -> Tensor:
    return vit.last_block(lambda q, k, v: attend(q, q, v))


def sclip(vit: PlainVit) -> Tensor:
    """The sum of two attentions, and the block otherwise as it is."""
    return vit.last_block(lambda q, k, v: attend(q, q, v) + attend(k, k, v), residual=True, mlp=True)


def maskclip(vit: PlainVit, residual: bool, mlp: bool) -> Tensor:
    return vit.last_block(lambda q, k, v: v, residual, mlp)


def naclip(vit: PlainVit, sigma: float) -> Tensor:
    bias = prior(vit, sigma)
    return vit.last_block(lambda q, k, v: torch.softmax(k @ k.T / k.shape[1] ** 0.5 + bias, dim=1) @ v)


def prior(vit: PlainVit, sigma: float) -> Tensor:
    """`[T, T]`, one pair of patches at a time."""
    (height, width), prefix = vit.grid, vit.prefix
    bias = torch.zeros(prefix + height * width, prefix + height * width)
    for a in range(height * width):
        for b in range(height * width):
            rows, columns = a // width - b // width, a % width - b % width
            bias[prefix + a, prefix + b] = math.exp(-(rows**2 + columns**2) / (2 * sigma**2))
    return bias


def resclip(vit: PlainVit, residual: float, gain: float) -> Tensor:
    bias, depth = prior(vit, 5.0), len(vit.blocks)
    middle = [max(1, twelfth * depth // 12) for twelfth in (6, 7, 8, 9)]  # from 1

    def one(image: Tensor) -> Tensor:
        entering, last = vit.entering(image), vit.blocks[-1]
        heads = []
        for head, (_, k, v) in enumerate(last.project(entering[-2])):
            part = torch.softmax(k @ k.T / k.shape[1] ** 0.5 + bias, dim=1)
            earlier = torch.zeros_like(part)
            for number in middle:
                q_l, k_l, _ = vit.blocks[number - 1].project(entering[number - 1])[head]
                earlier += torch.softmax(q_l @ k_l.T / q_l.shape[1] ** 0.5, dim=1) / len(middle)
            heads.append(gain * ((1 - residual) * part + residual * earlier) @ v)
        return vit.cosines(last.out(torch.cat(heads, dim=1)))

    return vit.maps(one)


def pearl(vit: PlainVit, key_weight: float) -> Tensor:
    """Keys are turned onto queries."""

    def gather(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = [0.0] * vit.prefix + [float(row.norm()) for row in q[vit.prefix :]]
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

    return vit.last_block(gather)


def inverse_root(gram: Tensor) -> Tensor:
    """Five Newton–Schulz steps for the inverse square root of a matrix whose norm is about 1."""
    eye = torch.eye(len(gram))
    y, z = gram.clone(), eye.clone()
    for _ in range(5):
        t = (3 * eye - z @ y) / 2
        y, z = y @ t, t @ z
    return z


CASES = [
    *((rule, {}) for rule in (patch_tokens, clearclip, sclip)),
    *((maskclip, {"residual": residual, "mlp": mlp}) for residual in (False, True) for mlp in (False, True)),
    *((naclip, {"sigma": sigma}) for sigma in (5.0, 0.7)),
    *((resclip, {"residual": residual, "gain": gain}) for residual, gain in ((0.3, 1.0), (0.8, 2.5))),
    *((pearl, {"key_weight": key_weight}) for key_weight in (0.08, 1.5)),
]
DEFAULTS = [(maskclip, {"residual": False, "mlp": False}), (naclip, {"sigma": 5.0}), (pearl, {"key_weight": 0.08})]


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize(("rule", "options"), CASES, ids=[f"{rule.__name__} {options}" for rule, options in CASES])
def test_the_equation(kind: str, rule: Any, options: dict[str, Any]) -> None:
    vit = plain_vit(kind)
    expected = rule(vit, **options)
    assert_equal(vit.ours(rule.__name__, **options), expected)
    if (rule, options) in DEFAULTS:
        assert_equal(vit.ours(rule.__name__), expected)
