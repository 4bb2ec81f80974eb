"""Occlusion against its definition in plain loops, window by window."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.saliency import methods
from cliploc.tower import Needs
from tests.saliency.peers import GRID, tiny_scene
from tests.saliency.vits import ours, scenes, tiny


def spans(length: int, side: float) -> list[tuple[int, int]]:
    size = round(side * length)
    count = math.ceil((length - size) / (size / 2)) + 1
    if count == 1:
        return [(0, size)]
    starts = [round(n * (length - size) / (count - 1)) for n in range(count)]
    return [(start, start + size) for start in starts]


def oracle(backbone: Any, images: Tensor, text: Tensor, side: float) -> Tensor:
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
def test_the_equation(kind: str, side: float) -> None:
    scene = tiny_scene("gap_cnn")
    backbone, images = (tiny(), scenes()) if kind == "vit" else (scene.backbone, scene.images)
    text = backbone.encode_text(["red", "green", "a zebra"])
    maps = ours("occlusion", backbone, images, text, side=side)
    torch.testing.assert_close(maps, oracle(backbone, images, text, side), rtol=1e-4, atol=1e-6)
    if side == 0.25:
        assert torch.equal(maps, ours("occlusion", backbone, images, text))


def test_embeddings_serve_every_prompt_and_are_made_once() -> None:
    scene = tiny_scene("gap_cnn")
    done: list[tuple[int, int]] = []
    ctx = scene.context(Needs(), progress=lambda *said: done.append(said), batch_size=1000)
    first = methods.get("occlusion").function(ctx, side=0.5)
    assert done == [(18, 18), (18, 0)]  # 3×3 windows, each alone and left out, of two pictures
    assert torch.equal(methods.get("occlusion").function(ctx, side=0.5), first)
    assert len(done) == 2
