"""SC-CLIP against its equations in plain loops, on three towers."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.methods.plain_vit import TOWERS, PlainVit, assert_equal, attend, plain_vit


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


def cosines(patches: Tensor) -> Tensor:
    return torch.stack([torch.stack([F.cosine_similarity(a, b, dim=0) for b in patches]) for a in patches])


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
