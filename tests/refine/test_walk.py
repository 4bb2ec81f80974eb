"""CAA against CLIP-ES's equation in plain loops on the tiny tower."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cliploc.methods import Context, min_max
from cliploc.refine import refinements
from cliploc.refine.caa import transition, walk
from tests.methods.peers import GRID, Scene, tiny_scene

H, W = GRID
N = H * W


def some_maps(seed: int = 0) -> Tensor:
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


def test_the_equation() -> None:
    scene, maps = tiny_scene("vit"), some_maps()
    refined = refinements.get("caa").function(context_of(scene), maps)
    for b in range(2):
        expected = walked_by_loops(attention_by_hand(scene, b), maps[b])
        torch.testing.assert_close(refined[b], expected.double(), rtol=1e-4, atol=1e-6)
    assert (refined[:, 2] == 0).all(), "a flat map stays flat"
    assert (refined[:, :2] != maps[:, :2]).any()


def test_nearly_uniform_attention_keeps_its_small_differences_and_rounding_shows_nothing() -> None:
    """Maps are scaled to 0–1 later: what float32 rounds off would depend on the batch."""
    generator = torch.Generator().manual_seed(3)
    maps = some_maps()[:1, :2]
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
    first = refinements.get("caa").function(ctx, some_maps(0))
    made = ctx.cache["caa"]
    refinements.get("caa").function(ctx, some_maps(1))
    assert ctx.cache["caa"] is made
    torch.testing.assert_close(refinements.get("caa").function(ctx, some_maps(0)), first)
