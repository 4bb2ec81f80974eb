"""Rules by which the last block's patches gather, each against its equation, on three towers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.towers.tower import Needs
from tests.methods.plain_vit import TOWERS, PlainVit, assert_equal, attend, plain_vit
from tests.towers.seam import pictures


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


# --------------------------------------------------------------------------------------------------------------- RADSeg
def alike(cosines: Tensor, factor: float) -> Tensor:
    """Row by row: e^(factor · cosine) over the cosines that are not negative, as shares."""
    weights = torch.where(cosines < 0, 0.0, (factor * cosines).exp())
    return weights / weights.sum(dim=1, keepdim=True)


def cosines(x: Tensor) -> Tensor:
    return F.cosine_similarity(x[:, None], x[None], dim=2)


def expected(vit: PlainVit, scra: float, scga: float) -> Tensor:
    def one(image: Tensor) -> Tensor:
        x, block = vit.entering(image)[-2], vit.blocks[-1]
        heads = block.project(x)
        part = block.out(torch.cat([attend(q, k, v) for q, k, v in heads], dim=1)).chunk(block.heads, dim=1)
        again = [alike(cosines(o), scra) @ v for o, (_, _, v) in zip(part, heads, strict=True)]
        x = x + block.out(torch.cat(again, dim=1))
        x = x + block.mlp_branch(x)
        patches = vit.backbone.last_norm(x[vit.prefix :])  # the authors' tower gives them after its norm
        similar = cosines(patches)
        read = vit.backbone.read_normed(alike(similar - similar.mean(), scga) @ patches)
        return F.normalize(read, dim=1) @ vit.text.T

    return vit.maps(one)


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("options", [{}, {"scra": 4.0, "scga": 25.0}], ids=str)
def test_places_attend_to_those_alike_in_the_block_and_after_it(kind: str, options: dict[str, float]) -> None:
    vit = plain_vit(kind)
    assert_equal(vit.ours("radseg", **options), expected(vit, **{"scra": 10.0, "scga": 10.0, **options}))


def test_the_projection_is_before_the_layer_scale() -> None:
    """DINO's blocks scale their branches; the authors read what is not scaled yet."""
    from tests.towers.test_dinotxt import SIDE, tiny

    tower = tiny("dinov3")
    trace = tower.trace(pictures(SIDE, SIDE), Needs(dense=1))
    gathered = trace.projections[-1][2]
    block = tower.vision_head.blocks[-1]
    ours = tower.attention_output(trace, gathered) * block.ls1.gamma
    torch.testing.assert_close(ours, tower.adapters[-1].attention_branch(trace.entering[-1], gathered))


# -------------------------------------------------------------------------------------------------------------- SC-CLIP
def local_outlier_factors(patches: Tensor, count: int) -> list[float]:
    """Breunig et al. 2000, definitions 3 to 7, one patch at a time, on squared distances."""
    rows = patches.double()
    n = len(rows)
    squared = [[float((rows[i] - rows[j]).square().sum()) for j in range(n)] for i in range(n)]
    near = [sorted((j for j in range(n) if j != i), key=lambda j: squared[i][j])[:count] for i in range(n)]
    furthest = [squared[i][near[i][-1]] for i in range(n)]
    density = [count / sum(max(furthest[j], squared[i][j]) for j in near[i]) for i in range(n)]
    return [sum(density[j] for j in near[i]) / count / density[i] for i in range(n)]


def outliers(patches: Tensor, share: float) -> set[int]:
    factors = local_outlier_factors(patches, min(30, len(patches) - 1))
    stored = math.floor((1 - share) * (len(factors) - 1) + 1e-9) + 1  # those at the quantile or below
    return set(sorted(range(len(factors)), key=lambda i: factors[i])[stored:])


def repaired(patches: Tensor, odd: set[int], grid: tuple[int, int]) -> Tensor:
    fixed = patches.clone()
    for i in odd:
        y, x = divmod(i, grid[1])
        around = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        good = [a * grid[1] + b for a, b in around if 0 <= a < grid[0] and 0 <= b < grid[1]]
        good = [j for j in good if j not in odd]
        if good:
            fixed[i] = sum(patches[j] for j in good) / len(good)
    return fixed


def mix(patches: Tensor, alike: Tensor) -> Tensor:
    rows = []
    for weights in alike:
        stored = [(float(w), patch) for w, patch in zip(weights, patches, strict=True) if w >= 0.4]
        rows.append(sum(w * patch for w, patch in stored) / sum(w for w, _ in stored))
    return torch.stack(rows)


def oracle(vit: PlainVit, share: float) -> Tensor:
    depth, last, prefix = len(vit.blocks), vit.blocks[-1], vit.prefix

    def one(image: Tensor) -> Tensor:
        tokens = vit.entering(image)  # tokens[n] leave block n

        def after(twelfth: int) -> Tensor:
            return tokens[max(1, twelfth * depth // 12)]

        x = tokens[-2]
        odd = outliers(x[prefix:], share) if share else set()
        alike = cosines(repaired(after(9)[prefix:], odd, vit.grid))
        shared = 3 * (alike - alike.mean())
        shared = torch.softmax(torch.where(shared < 0, -torch.inf, shared), dim=1)

        def output(patches: Tensor, part: Tensor) -> Tensor:
            out = last.branch(patches, lambda _, k, v: 0.5 * (shared @ v + attend(k, k, v)))
            return out + 0.3 * part[0] if prefix else out

        levels = sum(tokens[number] for number in {max(1, twelfth * depth // 12) for twelfth in range(4, 11)})
        first = output(mix(repaired(x[prefix:], odd, vit.grid), alike), x)
        second = output(levels[prefix:], levels)
        early = cosines(after(4)[prefix:])
        return F.normalize(vit.read(mix(first, early) + mix(second, early)), dim=1) @ vit.text.T

    return vit.maps(one)


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("share", [0.05, 0.2, 0.0])
def test_the_equations(kind: str, share: float) -> None:
    vit = plain_vit(kind)
    expected = oracle(vit, share)
    assert_equal(vit.ours("sc_clip", outliers=share), expected)
    if share == 0.05:
        assert_equal(vit.ours("sc_clip"), expected)


def test_repairing_patches_changes_the_map() -> None:
    """Otherwise the oracle above would say nothing about it."""
    vit = plain_vit("open_clip")
    with_, without = vit.ours("sc_clip", outliers=0.2), vit.ours("sc_clip", outliers=0.0)
    assert (with_ - without).abs().max() > 0.1 * (without.max() - without.min())
