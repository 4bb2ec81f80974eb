"""PAMR against its equation in plain loops."""

import math
import statistics

import pytest
import torch
from torch import Tensor

from cliploc.refine import _neighbours, refinements
from cliploc.refine.pamr import DILATIONS, STEPS, affinity


def pamr(picture: Tensor, maps: Tensor) -> Tensor:
    refined: Tensor = refinements.get("pamr").function(picture, maps, (16, 16))
    return refined


def by_loops(picture: list[list[list[float]]], heat: list[list[float]]) -> list[list[float]]:
    """One picture `[3][H][W]`, one map `[H][W]`."""
    height, width = len(heat), len(heat[0])

    def near(y: int, x: int) -> list[tuple[int, int]]:
        """The sixteen neighbours of a pixel; outside the picture its nearest pixel."""
        around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
        return [
            (min(max(y + d * dy, 0), height - 1), min(max(x + d * dx, 0), width - 1))
            for d in DILATIONS
            for dy, dx in around
        ]

    weights = {}
    for y in range(height):
        for x in range(width):
            k = []
            for v, u in near(y, x):
                total = 0.0
                for channel in picture:
                    values = [channel[b][a] for b, a in near(y, x)] + [channel[y][x]] * len(DILATIONS)
                    total += abs(channel[y][x] - channel[v][u]) / (0.1 * statistics.stdev(values) + 1e-8)
                k.append(-total / len(picture))
            powers = [math.exp(one - max(k)) for one in k]
            weights[y, x] = [one / sum(powers) for one in powers]
    for _ in range(STEPS):
        heat = [
            [sum(a * heat[v][u] for a, (v, u) in zip(weights[y, x], near(y, x), strict=True)) for x in range(width)]
            for y in range(height)
        ]
    return heat


def test_the_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(2, 3, 7, 12, generator=generator)
    maps = torch.rand(2, 2, 7, 12, generator=generator)
    refined = pamr(picture, maps)
    for b in range(2):
        for p in range(2):
            expected = torch.tensor(by_loops(picture[b].tolist(), maps[b, p].tolist()))
            torch.testing.assert_close(refined[b, p], expected, rtol=1e-4, atol=1e-5)


def test_neither_strips_nor_many_maps_at_once_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    picture, maps = torch.rand(1, 3, 40, 21, generator=generator), torch.rand(1, 34, 40, 21, generator=generator)
    complete = pamr(picture, maps)
    monkeypatch.setattr(_neighbours, "VALUES", 16 * 21 * 6)  # strips of six rows, the last of four
    torch.testing.assert_close(pamr(picture, maps), complete, rtol=1e-5, atol=1e-6)
    for together in (1, 3):
        apart = torch.cat([pamr(picture, some) for some in maps.split(together, dim=1)], dim=1)
        torch.testing.assert_close(apart, complete, rtol=1e-5, atol=1e-6)


def test_flat_maps_and_flat_pictures() -> None:
    picture = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(4))
    assert (pamr(picture, torch.zeros(1, 1, 20, 30)) == 0).all()
    torch.testing.assert_close(pamr(picture, torch.full((1, 1, 20, 30), 0.7)), torch.full((1, 1, 20, 30), 0.7))
    torch.testing.assert_close(affinity(torch.full((3, 9, 9), 0.3)), torch.full((16, 9, 9), 1 / 16))
