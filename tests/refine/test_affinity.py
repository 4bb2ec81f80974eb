"""Steps on the grid against their equations in plain loops: `affinity`, `level` and CAA."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from torch import Tensor

from cliploc.localizer import Localizer
from cliploc.methods import Context, min_max
from cliploc.refine import affinity as module
from cliploc.refine import refinements
from cliploc.refine.affinity import CUT, directions, spread_along
from cliploc.refine.caa import transition, walk
from cliploc.refine.level import levels
from tests.methods.peers import GRID, Scene, tiny_scene
from tests.test_localizer import WIDE
from tests.tiny import KINDS, give_function, tower
from tests.tolerances import assert_rounded

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


# ---------------------------------------------------------------------------------------------------------------- level
level = refinements.get("level")
SCENE = tiny_scene("gap_cnn")
CONTEXT = replace(SCENE.context(level.needs(SCENE.backbone)), threshold=0.5)
any_maps = arrays(np.float32, (2, 3, 5, 7), elements=st.floats(0, 1, width=32))


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
def test_the_equation_of_level(tau: float) -> None:
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
@given(any_maps, st.floats(0, 1))
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


# ------------------------------------------------------------------------------------------------------------------ CAA
H, W = GRID
N = H * W


def walked_maps(seed: int = 0) -> Tensor:
    """`[2, 3, H, W]` in 0–1; the last is flat."""
    maps = torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(seed)) ** 3
    maps = (maps - maps.amin((-2, -1), keepdim=True)) / (maps.amax((-2, -1), keepdim=True) - maps.amin((-2, -1), True))
    maps[:, 2] = 0
    return maps


def boxes_around_regions(heat: Tensor) -> Tensor:
    """1 in the rectangles around the regions of 8 neighbours above 0.4 of the maximum."""
    mask = torch.zeros(H, W)
    labels, _ = ndimage.label(heat > 0.4 * heat.max(), np.ones((3, 3)))
    for rectangle in ndimage.find_objects(labels):
        mask[rectangle] = 1
    return mask


def walked_by_loops(affinity: Tensor, maps: Tensor) -> Tensor:
    """One picture: affinity `[N, N]`, maps `[P, H, W]`."""
    d = affinity.clone()
    for _ in range(3):
        for j in range(N):
            d[:, j] = d[:, j] / sum(d[i, j] for i in range(N))
        for i in range(N):
            d[i] = d[i] / sum(d[i, j] for j in range(N))
    s = torch.stack([(d[i] + d[:, i]) / 2 for i in range(N)])
    out = torch.zeros_like(maps)
    for p, heat in enumerate(maps):
        source = (heat * boxes_around_regions(heat)).flatten()
        for i in range(N):
            out[p, i // W, i % W] = sum((s[i] @ s[:, j]) * source[j] for j in range(N))
    return out


def attention_by_hand(scene: Scene, b: int) -> Tensor:
    """Mean over blocks and heads of patch–patch attention, from the tower's own blocks."""
    x, total = scene.backbone.embed(scene.images[b : b + 1]), torch.zeros(N, N)
    for block in scene.backbone.blocks:
        x, attention = block(x)  # [1, heads, 1+N, 1+N]
        for head in attention[0]:
            total += head[1:, 1:] / len(attention[0]) / len(scene.backbone.blocks)
    return total


def context_of(scene: Scene) -> Context:
    return scene.context(refinements.get("caa").needs(scene.backbone))


def test_the_equation_of_caa() -> None:
    scene, maps = tiny_scene("vit"), walked_maps()
    refined = refinements.get("caa").function(context_of(scene), maps)
    for b in range(2):
        expected = walked_by_loops(attention_by_hand(scene, b), maps[b])
        torch.testing.assert_close(refined[b], expected.double(), rtol=1e-4, atol=1e-6)
    assert (refined[:, 2] == 0).all(), "a flat map stays flat"
    assert (refined[:, :2] != maps[:, :2]).any()


def test_nearly_uniform_attention_keeps_its_small_differences_and_rounding_shows_nothing() -> None:
    """Maps are scaled to 0–1 later: what float32 rounds off would depend on the batch."""
    generator = torch.Generator().manual_seed(3)
    maps = walked_maps()[:1, :2]
    affinity = (1 + 1e-4 * torch.rand(N, N, generator=generator)) / N
    expected = min_max(walked_by_loops(affinity.double(), maps[0].double()))
    torch.testing.assert_close(min_max(walk(transition(affinity[None]), maps))[0], expected, rtol=0, atol=1e-4)
    ulp = torch.finfo(torch.float32).eps
    rounded = (1 + ulp * torch.randint(-1, 2, (1, N, N), generator=generator)) / N
    flat = walk(transition(rounded), maps).flatten(2)
    assert torch.equal(flat.amin(dim=-1), flat.amax(dim=-1))


def test_one_matrix_serves_all_methods() -> None:
    scene = tiny_scene("vit")
    ctx = context_of(scene)
    first = refinements.get("caa").function(ctx, walked_maps(0))
    made = ctx.cache["caa"]
    refinements.get("caa").function(ctx, walked_maps(1))
    assert ctx.cache["caa"] is made
    torch.testing.assert_close(refinements.get("caa").function(ctx, walked_maps(0)), first)
