"""LPOSS and LPOSS+ against a dense solve of their equations, and conjugate gradients against SciPy's."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg
from torch import Tensor

from cliploc.localizer import Localizer
from cliploc.refine import _neighbours, lposs, refinements
from cliploc.refine._propagation import ALPHA, STEPS, normalized, propagate
from cliploc.refine.lposs_plus import gathered, neighbour_weights
from tests.methods.peers import tiny_scene
from tests.tiny import KINDS, tower
from tests.tolerances import assert_rounded

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
    theirs = [0.05 * cg(system, one.numpy(), rtol=1e-6, maxiter=STEPS)[0] for one in labels]
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
