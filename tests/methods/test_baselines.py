"""Maps that read no picture: the box in the middle, the Gaussian in the middle, and random numbers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cliploc.localizer import Localizer
from cliploc.methods import baselines, methods
from tests.tiny import context, tower

GRID = (5, 6)


def heat(name: str, grid: tuple[int, int], **options: Any) -> Tensor:
    """The map `[P, H, W]` of an empty picture and two prompts."""
    method = methods.get(name)
    images = torch.zeros(1, 3, *(4 * cells for cells in grid))
    return method.function(context(tower("gap_cnn", grid), images, ["red", "blue"], method.needs()), **options)[0]


def test_the_box_is_half_of_the_input() -> None:
    half = heat("centre_box", (25, 50))[0]  # [100, 200]
    assert set(half.unique().tolist()) == {0.0, 1.0}
    assert float(half.mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.equal(half, half.flip(-1))
    assert torch.equal(half, half.flip(-2))


@pytest.mark.parametrize("step", ["affinity", "guided"])
def test_no_refinement_lets_it_follow_the_picture(step: str) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    backbone = tower("gap_cnn", GRID)
    requested = {"method": "centre_box", "min_presence": 0}
    plain = Localizer(backbone, **requested)
    refined = Localizer(backbone, **requested, refine=[step])
    assert np.array_equal(plain(picture, ["red"]).maps, refined(picture, ["red"]).maps)
    assert refined.box_rule == plain.box_rule
    assert refined.describe() == plain.describe()


def test_the_gaussian_is_the_formula() -> None:
    found = heat("centre_gaussian", GRID)[0]  # [20, 24]
    for y, x in [(0, 0), (9, 11), (10, 12), (19, 5)]:
        dy, dx = (y + 0.5) / 20 - 0.5, (x + 0.5) / 24 - 0.5
        assert float(found[y, x]) == pytest.approx(math.exp(-(dx**2 + dy**2) / (2 * 0.25**2)), abs=1e-6)


def test_cells_hold_the_generators_numbers_and_another_seed_gives_others() -> None:
    method, backbone = methods.get("random"), tower("gap_cnn", GRID)
    images = torch.zeros(2, 3, 14 * 5, 14 * 3)  # odd cells, so that each has a pixel in its middle
    ctx = context(backbone, images, ["red", "a zebra"], method.needs())
    maps = method.function(ctx, seed=3)
    drawn = torch.rand(14, 14, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(maps[0, 0, 2::5, 1::3], drawn, rtol=0, atol=1e-6)
    assert torch.equal(maps[0, 0], maps[1, 1])
    assert not torch.equal(maps, method.function(ctx))
    assert "random" not in baselines(), "a draw is no baseline of boxes"
