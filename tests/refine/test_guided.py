"""Steps over the input against their definitions in plain loops: the guided filter and PAMR."""

import math
import statistics

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.images.geometry import Frame
from cliploc.localizer import Localizer
from cliploc.options import POLICIES
from cliploc.refine import _neighbours, refinements
from cliploc.refine.guided import EPS
from cliploc.refine.pamr import DILATIONS, STEPS, affinity
from tests.methods.vits import photograph
from tests.tiny import give_function, tower


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
