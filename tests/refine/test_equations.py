"""Each step that refines maps against its definition in plain loops; first the guided filter and PAMR."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from scipy.sparse.linalg import cg
from torch import Tensor
from torch.nn import functional as F

from cliploc.images.geometry import Frame
from cliploc.localizer import Localizer
from cliploc.methods import Context, min_max
from cliploc.options import POLICIES
from cliploc.refine import _neighbours, lposs, refinements
from cliploc.refine import affinity as module
from cliploc.refine._propagation import ALPHA, normalized, propagate
from cliploc.refine._propagation import STEPS as SOLVER_STEPS
from cliploc.refine.affinity import CUT, directions, spread_along
from cliploc.refine.caa import transition, walk
from cliploc.refine.guided import EPS
from cliploc.refine.level import levels
from cliploc.refine.lposs_plus import gathered, neighbour_weights
from cliploc.refine.pamr import DILATIONS, STEPS
from cliploc.refine.pamr import affinity as pamr_affinity
from tests.methods.peers import GRID, Scene, tiny_scene
from tests.methods.towers import photograph
from tests.test_localizer import WIDE
from tests.tiny import KINDS, give_function, tower
from tests.tolerances import assert_rounded


def guided(picture, maps, cell):
    return refinements.get("guided").function(picture, maps, (cell, cell))


@pytest.mark.parametrize(("cell", "height", "width"), [(2, 9, 11), (3, 8, 8), (6, 7, 5)], ids=["2", "3", "wide"])
def test_the_definition(cell, height, width):
    """Windows are mirrored at the border; one wider than the picture is as wide as can be mirrored."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, height, width, generator=generator)
    maps = torch.rand(1, 2, height, width, generator=generator)
    rows, columns = min(cell, height - 1), min(cell, width - 1)

    def windows(array):
        """Mirrored `[C, H, W]` → for each pixel the values of its window, `[H, W, n, C]`."""
        padded = np.pad(array, ((0, 0), (rows, rows), (columns, columns)), mode="reflect")
        taken = np.lib.stride_tricks.sliding_window_view(padded, (2 * rows + 1, 2 * columns + 1), axis=(1, 2))
        return taken.reshape(*taken.shape[:3], -1).transpose(1, 2, 3, 0)

    colours = windows(picture[0].double().numpy())
    result = guided(picture, maps, cell)
    for p in range(2):
        heat = windows(maps[0, p : p + 1].double().numpy())[..., 0]
        a, b = np.zeros((3, height, width)), np.zeros((1, height, width))
        for y in range(height):
            for x in range(width):
                i, m = colours[y, x], heat[y, x]
                covariance = i.T @ i / len(i) - np.outer(i.mean(0), i.mean(0))
                with_map = i.T @ m / len(i) - i.mean(0) * m.mean()
                a[:, y, x] = np.linalg.inv(covariance + EPS * np.eye(3)) @ with_map
                b[0, y, x] = m.mean() - a[:, y, x] @ i.mean(0)
        mean_a, mean_b = windows(a).mean(2), windows(b).mean(2)[..., 0]
        expected = (mean_a * picture[0].permute(1, 2, 0).numpy()).sum(-1) + mean_b
        np.testing.assert_allclose(result[0, p], expected.clip(0, 1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("size_wh", "longest"), [((637, 411), 637), ((1500, 1100), 1024)], ids=["small", "large"])
def test_heatmaps_follow_an_edge_of_the_photograph_to_the_pixel(policy, size_wh, longest):
    """An edge that no cell of the grid (8×8) and no pixel of the input (32×32) ends at."""
    width, height = size_wh
    edge = round(0.43 * width) + 1
    pixels = np.full((height, width, 3), 60, np.uint8)
    pixels[:, :edge] = (200, 120, 60)
    noise = np.random.default_rng(0).integers(-6, 7, pixels.shape)
    backbone = tower("gap_cnn", (8, 8))
    frame = Frame.fit(policy, (height, width), backbone.input_hw)
    inside = edge * frame.scale_xy[0] + frame.offset_xy[0]  # pixels of the input
    cells = round(inside / 4 + 0.5)  # of the map's columns, those that the object touches

    def method(ctx):
        heat = torch.zeros(len(ctx.text), ctx.text.shape[1], *ctx.trace.grid)
        heat[..., :cells] = 1
        return heat

    def heatmaps(refine):
        localizer = Localizer(backbone, method="cam", resize=policy, refine=refine)
        give_function(localizer, method)
        return localizer((pixels + noise).astype(np.uint8), ["red"])

    result, plain = heatmaps(["guided"]), heatmaps([])
    # A crop shows the middle square, give or take a pixel of the input.
    assert max(result.frame.input_hw) == pytest.approx(longest if policy != "crop" else min(height, 1024), rel=1 / 32)
    assert max(result.frame.input_hw) <= 1024
    heat = result.heatmaps[0]  # [H, W]
    assert heat.shape == plain.heatmaps[0].shape == (height, width)
    rows = slice(height // 4, -height // 4)
    near = slice(edge - width // 10, edge + width // 10)
    found = near.start + 1 + np.abs(np.diff(heat[rows, near], axis=1)).argmax(axis=1)  # the steepest step of each row
    assert np.abs(found - edge).max() <= 2
    across, before = (one[rows, edge - 4].mean() - one[rows, edge + 4].mean() for one in (heat, plain.heatmaps[0]))
    assert across > max(0.2, 4 * before)


def test_large_windows_are_sampled_to_nearly_the_same_map():
    """The fast guided filter: a and b on every fourth pixel; and it is kornia's."""
    guided_blur = pytest.importorskip("kornia.filters").guided_blur

    picture = photograph("cat", 448, 320)
    coarse = torch.rand(1, 9, 5, 7, generator=torch.Generator().manual_seed(0))  # more prompts than at once
    maps = F.interpolate(coarse, size=(320, 448), mode="bilinear")
    fast, full = guided(picture, maps, 64), guided_blur(picture, maps, (129, 129), EPS, separable=True).clamp(0, 1)
    assert (fast - full).abs().max() < 0.05
    assert (fast - full).abs().mean() < 0.005
    assert (fast - full).abs().max() > 0, "the windows were not sampled"
    theirs = guided_blur(picture, maps, (129, 129), EPS, subsample=4, separable=True).clamp(0, 1)
    torch.testing.assert_close(fast, theirs, rtol=0, atol=1e-4)
    odd = picture[..., 3:, 5:], maps[..., 3:, 5:]  # sides that are no multiples of 4
    theirs = guided_blur(*odd, (129, 129), EPS, subsample=4, separable=True).clamp(0, 1)
    torch.testing.assert_close(guided(*odd, 64), theirs, rtol=0, atol=1e-4)


def test_a_flat_map_stays_flat_and_a_flat_picture_blurs():
    picture = torch.full((1, 3, 20, 20), 0.3)
    assert (guided(picture, torch.zeros(1, 1, 20, 20), 4) == 0).all()
    maps = torch.zeros(1, 1, 20, 20)
    maps[..., 10, 10] = 1
    window = F.avg_pool2d(F.avg_pool2d(F.pad(maps, (4,) * 4), 9, 1), 9, 1, padding=4)
    torch.testing.assert_close(guided(picture, maps, 4)[..., 6:14, 6:14], window[..., 6:14, 6:14], rtol=1e-3, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------- PAMR
def pamr(picture: Tensor, maps: Tensor) -> Tensor:
    refined: Tensor = refinements.get("pamr").function(picture, maps, (16, 16))
    return refined


def pamr_by_loops(picture: list[list[list[float]]], heat: list[list[float]]) -> list[list[float]]:
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


def test_the_equation_of_pamr() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(2, 3, 7, 12, generator=generator)
    maps = torch.rand(2, 2, 7, 12, generator=generator)
    refined = pamr(picture, maps)
    for b in range(2):
        for p in range(2):
            expected = torch.tensor(pamr_by_loops(picture[b].tolist(), maps[b, p].tolist()))
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
    torch.testing.assert_close(pamr_affinity(torch.full((3, 9, 9), 0.3)), torch.full((16, 9, 9), 1 / 16))


# ------------------- LPOSS and LPOSS+ against a dense solve of their equations, and conjugate gradients against SciPy's
METHOD = refinements.get("lposs")
PIXELS = refinements.get("lposs_plus")


def solved(weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(1 − α) (I − α D^-½ W D^-½)⁻¹ Y, W `[N, N]`, Y `[N]`."""
    degree = weights.sum(1)
    scale = np.array([1 / math.sqrt(d) if d > 0 else 1.0 for d in degree])
    system = np.eye(len(weights)) - 0.95 * scale[:, None] * weights * scale[None]
    return 0.05 * np.linalg.solve(system, labels)


def patches_by_loops(features: np.ndarray, h: int, w: int, cell: tuple[float, float], nearest: int) -> np.ndarray:
    """W of features `[N, C]`."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    n = h * w
    v = np.zeros((n, n))
    for i in range(n):
        cosines = [float(unit[i] @ unit[j]) for j in range(n)]
        for j in sorted(range(n), key=lambda j: -cosines[j])[:nearest]:
            away = math.hypot((i // w - j // w) * cell[0], (i % w - j % w) * cell[1])
            v[i, j] = max(0.0, cosines[j]) ** 3 * math.exp(-0.01 * away)
    total = v + v.T
    np.fill_diagonal(total, 0)
    return total


@pytest.mark.parametrize("nearest", [400, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_the_equation_on_patches(kind: str, nearest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lposs, "NEAREST", nearest)
    scene = tiny_scene(kind)
    ctx = scene.context(METHOD.needs(scene.backbone))
    features = ctx.trace.features[scene.backbone.middle_stage]
    guided = METHOD.function(replace(ctx, guide=lambda: features, cache={}), torch.ones(2, 1, *features.shape[-2:]))
    weights = patches_by_loops(
        features[0].flatten(1).T.double().numpy(),
        features.shape[-2],
        features.shape[-1],
        (ctx.images.shape[-2] / features.shape[-2], ctx.images.shape[-1] / features.shape[-1]),
        nearest,
    )
    np.testing.assert_allclose(guided[0, 0].flatten(), solved(weights, np.ones(len(weights))), rtol=1e-3, atol=1e-5)
    features = features - features.mean(dim=(2, 3), keepdim=True)  # of the tower's own
    h, w = METHOD.grid(ctx)
    maps = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(0)) ** 3
    maps[:, 2] = 0
    refined = METHOD.function(ctx, maps)
    cell = (ctx.images.shape[-2] / h, ctx.images.shape[-1] / w)
    for b in range(2):
        weights = patches_by_loops(features[b].flatten(1).T.double().numpy(), h, w, cell, nearest)
        for p in range(3):
            expected = solved(weights, maps[b, p].flatten().double().numpy())
            np.testing.assert_allclose(refined[b, p].flatten(), expected, rtol=1e-3, atol=1e-5)
    assert (refined[:, 2] == 0).all(), "a flat map stays flat"
    # Rounding in a step is a slip in the equation's right side, which the solution enlarges by 1 / (1 − α) at most.
    alone, scale = METHOD.function(ctx, maps[:, :1]), float(refined[:, :1].max()) / (1 - ALPHA)
    assert_rounded(alone, refined[:, :1], h * w, scale)  # no name depends on the others


@pytest.mark.parametrize("kind", ["gap_cnn", "vit"])
def test_places_where_no_window_lies_are_like_no_other(kind: str) -> None:
    """They have the mean feature but for rounding, which differs from batch to batch and must not link them."""
    wide, other = (np.random.default_rng(seed).integers(0, 256, (30, 60, 3), np.uint8) for seed in (0, 1))
    localizer = Localizer(
        tower(kind, (8, 8)), method="grad_cam", refine=["lposs"], windows=(2.0,), resize="pad", min_presence=0
    )
    alone, beside = localizer(wide, ["thing"]), localizer([wide, other], ["thing"])[0]
    assert alone.maps.max() == 1
    np.testing.assert_allclose(alone.maps, beside.maps, atol=1e-4)


def pixels_by_loops(picture: Tensor) -> np.ndarray:
    """W of a picture `[3, H, W]`, its Lab from the definition (sRGB, D65)."""

    def lab(pixel: list[float]) -> list[float]:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in pixel]
        matrix = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
        white = (0.95047, 1.0, 1.08883)
        xyz = [sum(m * c for m, c in zip(row, linear, strict=True)) / n for row, n in zip(matrix, white, strict=True)]
        f = [t ** (1 / 3) if t > 0.008856 else 7.787 * t + 4 / 29 for t in xyz]
        return [(116 * f[1] - 16) / 100, 500 * (f[0] - f[1]) / 128, 200 * (f[1] - f[2]) / 128]

    _, height, width = picture.shape
    colours = [lab(picture[:, y, x].tolist()) for y in range(height) for x in range(width)]
    weights = np.zeros((len(colours), len(colours)))
    for i, a in enumerate(colours):
        for j, b in enumerate(colours):
            if i != j and abs(i // width - j // width) <= 6 and abs(i % width - j % width) <= 6:
                weights[i, j] = math.exp(-math.dist(a, b) / 0.01)
    return weights


@pytest.mark.parametrize(("height", "width", "names"), [(9, 17, 2), (16, 3, 5)])
def test_the_equation_on_pixels(height: int, width: int, names: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_neighbours, "VALUES", 4 * width * 2)  # four rows at once
    generator = torch.Generator().manual_seed(0)
    picture = 0.5 + 0.03 * torch.rand(2, 3, height, width, generator=generator)
    picture[..., : width // 2] = 0.3
    maps = torch.rand(2, names, height, width, generator=generator) ** 3
    refined = PIXELS.function(picture, maps, (16, 16))
    for b in range(2):
        weights = pixels_by_loops(picture[b])
        for p in range(names):
            expected = solved(weights, maps[b, p].flatten().double().numpy())
            np.testing.assert_allclose(refined[b, p].flatten(), expected, rtol=0.02, atol=5e-4)


def test_many_maps_at_once_are_those_of_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_neighbours, "VALUES", 12 * 19 * 5)  # strips of five rows, the last of three
    generator = torch.Generator().manual_seed(3)
    picture = 0.5 + 0.03 * torch.rand(1, 3, 23, 19, generator=generator)
    maps = torch.rand(1, 34, 23, 19, generator=generator)
    one_by_one = torch.cat([PIXELS.function(picture, one, (16, 16)) for one in maps.split(1, dim=1)], dim=1)
    torch.testing.assert_close(PIXELS.function(picture, maps, (16, 16)), one_by_one, rtol=1e-3, atol=1e-5)


def test_conjugate_gradients_are_those_of_scipy() -> None:
    """Both stop by the residual; the second name is zero, the third done after one step."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(1, 60, 60, generator=generator).double() ** 8
    matrix = normalized((weights + weights.transpose(1, 2)) * (1 - torch.eye(60)))[0]
    labels = torch.rand(3, 60, generator=generator).double()
    labels[1], labels[2] = 0, torch.linalg.eigh(matrix).eigenvectors[:, -1].abs()
    ours = propagate(matrix.__rmatmul__, labels, 1e-6)
    system = np.eye(60) - ALPHA * matrix.numpy()
    theirs = [0.05 * cg(system, one.numpy(), rtol=1e-6, maxiter=SOLVER_STEPS)[0] for one in labels]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert (ours[1] == 0).all()
    torch.testing.assert_close(ours[2], labels[2])  # (1 − α) / (1 − α · 1)


def test_a_pixel_without_a_like_neighbour_keeps_its_heat() -> None:
    picture = torch.zeros(3, 13, 13)
    picture[:, 6, 6] = 1
    weights = neighbour_weights(picture)
    heat = torch.rand(1, 13, 13)
    assert gathered(weights, heat)[0, 6, 6] == 0
    stored = PIXELS.function(picture[None], heat[None], (16, 16))[0, 0, 6, 6]
    torch.testing.assert_close(stored, 0.05 * heat[0, 6, 6])
    assert (PIXELS.function(picture[None], torch.zeros(1, 1, 13, 13), (16, 16)) == 0).all()


# -------------------------------- Steps on the grid against their equations in plain loops: `affinity`, `level` and CAA
AFFINITY = refinements.get("affinity")


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
    ctx = scene.context(AFFINITY.needs(scene.backbone))
    features = ctx.trace.features[scene.backbone.middle_stage]  # [2, C, h, w]
    h, w = AFFINITY.grid(ctx)
    assert features.shape[-2:] == (h, w)
    maps = some_maps(h, w)
    refined = AFFINITY.function(ctx, maps)
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
    assert AFFINITY.grid(ctx) == (16, 16)
    assert refinements.get("caa").grid(replace(ctx, backbone=tower("vit"))) == (8, 8), "a step that reads no features"
    assert AFFINITY.grid(replace(ctx, guide=lambda: torch.zeros(1, 2, 3, 5))) == (3, 5)


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


def walked_by_loops(attention: Tensor, maps: Tensor) -> Tensor:
    """One picture: attention `[N, N]`, maps `[P, H, W]`."""
    d = attention.clone()
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
    attention = (1 + 1e-4 * torch.rand(N, N, generator=generator)) / N
    expected = min_max(walked_by_loops(attention.double(), maps[0].double()))
    torch.testing.assert_close(min_max(walk(transition(attention[None]), maps))[0], expected, rtol=0, atol=1e-4)
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
