"""`affinity` against its equation in plain loops, and the grid that it works on."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cliploc.localizer import Localizer
from cliploc.methods import Context
from cliploc.refine import affinity as module
from cliploc.refine import refinements
from cliploc.refine.affinity import CUT, directions, spread_along
from tests.methods.peers import tiny_scene
from tests.test_localizer import WIDE
from tests.tiny import KINDS, give_function, tower

affinity = refinements.get("affinity")


def some_maps(h: int, w: int) -> Tensor:
    """`[2, 3, h, w]`, not below 0; the last map of each picture is flat."""
    maps = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(0)) ** 3
    maps[:, 2] = 0
    return maps


def spread_by_loops(features: list[list[float]], heat: list[float]) -> list[float]:
    """Σ_j max(0, S_ij − cut) m_j / Σ_j max(0, S_ij − cut), for places with features `[N][C]` and heat `[N]`."""
    places, channels = range(len(features)), range(len(features[0]))
    mean = [sum(features[i][c] for i in places) / len(features) for c in channels]
    centred = [[features[i][c] - mean[c] for c in channels] for i in places]
    lengths = [math.sqrt(sum(x * x for x in place)) for place in centred]
    result = []
    for i in places:
        total = weights = 0.0
        for j in places:
            cosine = sum(centred[i][c] * centred[j][c] for c in channels) / (lengths[i] * lengths[j])
            weight = max(0.0, cosine - CUT)
            total, weights = total + weight * heat[j], weights + weight
        result.append(total / weights)
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_the_equation(kind: str) -> None:
    scene = tiny_scene(kind)
    ctx = scene.context(affinity.needs(scene.backbone))
    features = ctx.trace.features[scene.backbone.middle_stage]  # [2, C, h, w]
    h, w = affinity.grid(ctx)
    assert features.shape[-2:] == (h, w)
    maps = some_maps(h, w)
    refined = affinity.function(ctx, maps)
    for b in range(2):
        places = features[b].flatten(1).T.tolist()
        for p in range(3):
            expected = torch.tensor(spread_by_loops(places, maps[b, p].flatten().tolist())).view(h, w)
            torch.testing.assert_close(refined[b, p], expected, rtol=1e-4, atol=1e-6)
    assert (refined[:, 2] == 0).all(), "a flat map stays flat"


def test_many_places_are_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    features, maps = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(1)), some_maps(6, 7)
    complete = spread_along(directions(features), maps, CUT)
    monkeypatch.setattr(module, "PAIRS", 2 * 42 * 5)  # five rows at once, the last part is smaller
    torch.testing.assert_close(spread_along(directions(features), maps, CUT), complete)


def test_a_picture_without_edges_keeps_its_map() -> None:
    maps = some_maps(4, 6)
    torch.testing.assert_close(spread_along(directions(torch.full((2, 5, 4, 6), 0.5)), maps, CUT), maps)


def test_it_works_on_the_grid_of_the_middle_stage() -> None:
    """A tower whose middle is twice as fine as its last stage: one hot cell becomes what the finer places say."""
    backbone = tower("gap_cnn", (8, 8))
    seen: list[Context] = []

    def method(ctx: Context) -> Tensor:
        seen.append(ctx)
        heat = torch.zeros(len(ctx.text), ctx.text.shape[1], *ctx.trace.grid)
        heat[..., 3, 2] = 1
        return heat

    localizer = Localizer(backbone, method="cam", refine=["affinity"])
    give_function(localizer, method)
    localizer(WIDE, ["red"])
    ctx = seen[0]
    assert ctx.trace.grid == (8, 8)
    assert affinity.grid(ctx) == (16, 16)
    assert refinements.get("caa").grid(replace(ctx, backbone=tower("vit"))) == (8, 8), "a step that reads no features"
    assert affinity.grid(replace(ctx, guide=lambda: torch.zeros(1, 2, 3, 5))) == (3, 5)
