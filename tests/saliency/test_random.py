"""The random map: the generator's numbers at the cells' centres, another map by another seed."""

import pytest
import torch

from cliploc.saliency import baselines, methods
from tests.tiny import context, tower


def test_the_cells_hold_the_generators_numbers() -> None:
    method, backbone = methods.get("random"), tower("gap_cnn", (5, 6))
    images = torch.zeros(1, 3, 14 * 5, 14 * 3)  # odd cells, so that each has a pixel in its middle
    heat = method.function(context(backbone, images, ["red"], method.needs()), seed=3)[0, 0]
    drawn = torch.rand(14, 14, generator=torch.Generator().manual_seed(3))
    for row in range(14):
        for column in range(14):
            assert float(heat[5 * row + 2, 3 * column + 1]) == pytest.approx(float(drawn[row, column]), abs=1e-6)


def test_another_seed_is_another_map() -> None:
    method, backbone = methods.get("random"), tower("gap_cnn", (5, 6))
    ctx = context(backbone, torch.zeros(2, 3, 20, 24), ["red", "a zebra"], method.needs())
    assert not torch.equal(method.function(ctx), method.function(ctx, seed=1))
    assert torch.equal(method.function(ctx)[0, 0], method.function(ctx)[1, 1])


def test_a_draw_is_no_baseline_of_boxes() -> None:
    assert "random" not in baselines()
