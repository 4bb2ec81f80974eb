"""The guided filter against its definition, window by window, and on an edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cliploc.refine import refinements
from cliploc.refine.guided import EPS


def guided(picture, maps, cell):
    return refinements.get("guided").function(picture, maps, cell)


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


def test_a_blurred_map_follows_the_edge_of_the_picture():
    """The object is the left half of a noisy picture; its heat, on a grid of cells, crosses the edge."""
    generator = torch.Generator().manual_seed(1)
    picture = torch.full((1, 3, 48, 48), 0.2)
    picture[..., 20:] = 0.8
    picture = (picture + 0.01 * torch.randn(picture.shape, generator=generator)).clamp(0, 1)
    coarse = torch.zeros(1, 1, 6, 6)
    coarse[..., :3] = 1  # to pixel 24, as cells of 8 go
    blurred = F.interpolate(coarse, size=(48, 48), mode="bilinear", align_corners=False)
    refined = guided(picture, blurred, 8)
    step = refined[0, 0, :, 19] - refined[0, 0, :, 20]  # where the picture has its edge
    before = blurred[0, 0, :, 19] - blurred[0, 0, :, 20]
    assert before.max() < 0.07
    assert step.min() > 0.4
    assert (refined[0, 0].diff(dim=-1).abs().argmax(-1) == 19).all()


def test_a_flat_map_stays_flat_and_a_flat_picture_blurs():
    picture = torch.full((1, 3, 20, 20), 0.3)
    assert (guided(picture, torch.zeros(1, 1, 20, 20), 4) == 0).all()
    maps = torch.zeros(1, 1, 20, 20)
    maps[..., 10, 10] = 1
    window = F.avg_pool2d(F.avg_pool2d(F.pad(maps, (4,) * 4), 9, 1), 9, 1, padding=4)
    torch.testing.assert_close(guided(picture, maps, 4)[..., 6:14, 6:14], window[..., 6:14, 6:14], rtol=1e-3, atol=1e-5)
