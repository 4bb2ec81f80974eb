"""RISE and Occlusion against their definitions in plain loops; what their altered pictures cost."""

import math
from typing import Any

import cv2
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import methods
from cliploc.towers.tower import Needs
from tests.methods.peers import GRID, tiny_scene

BUDGET = 40


def plain_mask(numbers: Tensor, height: int, width: int) -> Tensor:
    """`[H, W]` from the mask's own 66 uniform numbers, enlarged by OpenCV."""
    cell_height, cell_width = math.ceil(height / 8), math.ceil(width / 8)
    cells = (numbers[:64].view(8, 8) < 0.5).float().numpy()
    enlarged = cv2.resize(cells, (9 * cell_width, 9 * cell_height), interpolation=cv2.INTER_LINEAR)
    top, left = int(numbers[64] * cell_height), int(numbers[65] * cell_width)
    return torch.from_numpy(enlarged[top : top + height, left : left + width])


def oracle(backbone: Any, images: Tensor, text: Tensor) -> Tensor:
    """Maps `[B, P, h, w]`."""
    height, width = images.shape[-2:]
    numbers = torch.rand(BUDGET, 66, generator=torch.Generator().manual_seed(0))
    masks = [plain_mask(row, height, width) for row in numbers]
    small = torch.stack([F.avg_pool2d(mask[None, None], height // GRID[0])[0, 0] for mask in masks])  # [N, h, w]
    maps = []
    for image in images:
        scores = torch.stack([backbone.encode_image((image * mask)[None])[0] @ text.T for mask in masks])  # [N, P]
        for column in scores.T:
            used = column - column.mean()
            maps.append(sum(score * mask for score, mask in zip(used, small, strict=True)) / (BUDGET * 0.5))
    return torch.stack(maps).view(len(images), len(text), *GRID)


@pytest.mark.parametrize("kind", ["gap_cnn", "vit"])
def test_the_equation(kind: str) -> None:
    scene = tiny_scene(kind)
    expected = oracle(scene.backbone, scene.images, scene.text)
    torch.testing.assert_close(scene.ours("rise", budget=BUDGET), expected, rtol=1e-4, atol=1e-6)


def test_masked_embeddings_serve_every_prompt_and_a_larger_budget_adds_to_them() -> None:
    scene = tiny_scene("gap_cnn")
    done: list[tuple[int, int]] = []
    seen: list[int] = []

    def encode(images: Tensor) -> Tensor:
        seen.append(len(images))
        return scene.backbone.encode_image(images)

    ctx = scene.context(Needs(), encode_masked=encode, progress=lambda *message: done.append(message), batch_size=16)
    first = methods.get("rise").function(ctx, budget=32)
    assert sum(seen) == 2 * 32
    assert max(seen) == 16
    assert done == [(16, 48), (16, 32), (16, 16), (16, 0)]
    more = methods.get("rise").function(ctx, budget=40)
    assert sum(seen) == 2 * 40
    torch.testing.assert_close(more, scene.ours("rise", budget=40))
    torch.testing.assert_close(methods.get("rise").function(ctx, budget=32), first)
    assert sum(seen) == 2 * 40


def spans(length: int, side: float) -> list[tuple[int, int]]:
    size = round(side * length)
    count = math.ceil((length - size) / (size / 2)) + 1
    if count == 1:
        return [(0, size)]
    starts = [round(n * (length - size) / (count - 1)) for n in range(count)]
    return [(start, start + size) for start in starts]


def occluded(backbone: Any, images: Tensor, text: Tensor, side: float) -> Tensor:
    height, width = images.shape[-2:]
    cell = height // GRID[0]
    maps = torch.zeros(len(images), len(text), *GRID)
    for b, image in enumerate(images):
        totals, weights = torch.zeros(len(text), *GRID), torch.zeros(GRID)
        for top, bottom in spans(height, side):
            for left, right in spans(width, side):
                crop = F.interpolate(
                    image[None, :, top:bottom, left:right], (height, width), mode="bilinear", align_corners=False
                )
                without = image.clone()
                without[:, top:bottom, left:right] = 0
                gained = (backbone.encode_image(crop)[0] - backbone.encode_image(without[None])[0]) @ text.T
                for y in range(GRID[0]):
                    for x in range(GRID[1]):
                        tall = max(0, min(bottom, (y + 1) * cell) - max(top, y * cell))
                        wide = max(0, min(right, (x + 1) * cell) - max(left, x * cell))
                        weight = tall * wide / cell**2
                        totals[:, y, x] += weight * gained
                        weights[y, x] += weight
        maps[b] = totals / weights
    return maps


@pytest.mark.parametrize("kind", ["gap_cnn", "vit"])
@pytest.mark.parametrize("side", [0.25, 0.6, 1.0])
def test_occlusion_window_by_window(kind: str, side: float) -> None:
    scene = tiny_scene(kind)
    maps = scene.ours("occlusion", side=side)
    torch.testing.assert_close(maps, occluded(scene.backbone, scene.images, scene.text, side), rtol=1e-4, atol=1e-6)
    if side == 0.25:
        assert torch.equal(maps, scene.ours("occlusion"))


def test_occlusions_embeddings_serve_every_prompt_and_are_made_once() -> None:
    scene = tiny_scene("gap_cnn")
    done: list[tuple[int, int]] = []
    ctx = scene.context(Needs(), progress=lambda *message: done.append(message), batch_size=1000)
    first = methods.get("occlusion").function(ctx, side=0.5)
    assert done == [(18, 18), (18, 0)]  # 3×3 windows, each alone and left out, of two pictures
    assert torch.equal(methods.get("occlusion").function(ctx, side=0.5), first)
    assert len(done) == 2
