"""`level` against its equation in plain loops; that it keeps order, and which threshold it is told."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cliploc.localizer import Localizer
from cliploc.refine import refinements
from cliploc.refine.level import levels
from tests.methods.peers import tiny_scene
from tests.test_localizer import WIDE
from tests.tiny import tower
from tests.tolerances import assert_rounded

level = refinements.get("level")
SCENE = tiny_scene("gap_cnn")
CONTEXT = replace(SCENE.context(level.needs(SCENE.backbone)), threshold=0.5)
some_maps = arrays(np.float32, (2, 3, 5, 7), elements=st.floats(0, 1, width=32))


def by_loops(heat: list[float], tau: float) -> float:
    """The level of one map, of the numbers in the docstring."""
    best, chosen = math.inf, tau
    for step in range(41):
        tried = math.exp(math.log(tau) * 2 ** (step / 20 - 1))
        area = sum(math.erfc((tried - value) / 0.08 / math.sqrt(2)) / 2 for value in heat) / len(heat)
        slope = sum(math.exp(-(((value - tried) / 0.08) ** 2) / 2) for value in heat) / len(heat)
        slope /= 0.08 * math.sqrt(2 * math.pi)
        cost = tried * slope / max(area, 0.001) ** 0.75 + 3 * math.log(tried / tau) ** 2
        if cost < best - 1e-6:
            best, chosen = cost, tried
    return chosen


@pytest.mark.parametrize("tau", [0.3, 0.5, 0.6])
def test_the_equation(tau: float) -> None:
    maps = (
        torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(0)) ** torch.tensor([0.5, 1, 3])[:, None, None]
    )
    maps = maps / maps.amax(dim=(2, 3), keepdim=True)
    wanted = [[by_loops(one.flatten().tolist(), tau) for one in of_picture] for of_picture in maps]
    np.testing.assert_allclose(levels(maps, tau), wanted, rtol=1e-5)
    gamma = math.log(tau) / torch.tensor(wanted).log()[..., None, None]
    torch.testing.assert_close(level.function(replace(CONTEXT, threshold=tau), maps), maps**gamma)
    assert len({round(value, 3) for row in wanted for value in row}) > 2


def test_a_map_among_many_has_the_level_that_it_has_alone() -> None:
    maps = torch.rand(2, 60, 28, 28, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([levels(one[None, None], 0.5)[0, 0] for one in maps.flatten(0, 1)])
    assert_rounded(levels(maps, 0.5).flatten(), alone, 28 * 28)


@settings(max_examples=60, deadline=None)
@given(some_maps, st.floats(0, 1))
def test_order_peak_and_range_stay(values: np.ndarray, tau: float) -> None:
    maps, ctx = torch.from_numpy(values), replace(CONTEXT, threshold=tau)
    maps[:, 2] = maps[:, 2, :1, :1]  # flat
    found = level.function(ctx, maps)
    assert found.isfinite().all()
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[maps == 1] == 1).all()
    assert (found[maps == 0] == 0).all()
    for before, after in zip(maps.flatten(0, 1), found.flatten(0, 1), strict=True):
        order = before.flatten().argsort()
        assert (after.flatten()[order].diff() >= -1e-6).all()  # rounding
    assert (found[:, 2] == found[:, 2, :1, :1]).all()
    for b in range(2):
        for p in range(3):
            torch.testing.assert_close(level.function(ctx, maps[b : b + 1, p : p + 1])[0, 0], found[b, p])


def test_it_gets_the_threshold_that_the_maps_have_by_then() -> None:
    reported = []

    def spy(ctx, maps):
        reported.append(ctx.threshold)
        return maps

    backbone = tower("gap_cnn", (8, 8))
    for steps in (["level"], ["affinity", "level"]):
        localizer = Localizer(backbone, method="cam", refine=steps, threshold=0.2)
        of_flow = localizer._flow.steps
        of_flow.on_grid = tuple(replace(one, function=spy) if one.name == "level" else one for one in of_flow.on_grid)
        localizer(WIDE, ["red"])
        assert localizer.box_rule.threshold == 0.2
    assert reported == [0.3, 0.5]
    assert Localizer(backbone, method="cam", refine=["affinity", "level"]).box_rule.threshold == 0.5
