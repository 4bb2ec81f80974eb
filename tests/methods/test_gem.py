"""GEM against its equation on three towers, and against gem_torch on a ViT of twelve blocks."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.methods.peers import assert_same_maps, min_max
from tests.methods.plain_vit import TOWERS, PlainVit, assert_equal, open_clip_model, plain_vit
from tests.methods.vits import ours, twelve_blocks
from tests.towers.seam import tokenizer


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def gathered(q: Tensor, k: Tensor, v: Tensor, sharpness: Tensor | float, iterations: int) -> Tensor:
    """Of one head: the mean of three self-self attentions `[T, d/H]`."""
    total = torch.zeros_like(v)
    for x in (q, k, v):
        for _ in range(iterations):
            x = torch.softmax(sharpness * unit(x) @ unit(x).T, dim=1) @ unit(x)
        total = total + torch.softmax(sharpness * unit(x) @ unit(x).T, dim=1) @ v
    return total / 3


def expected(vit: PlainVit, depth: int, iterations: int = 1, temperature: float | None = None) -> Tensor:
    def one(image: Tensor) -> Tensor:
        entering, start = vit.entering(image), len(vit.blocks) - depth
        path = entering[start]
        for x, block in zip(entering[start:-1], vit.blocks[start:], strict=True):
            lengths = [token.norm() for token in block.norm_1(x)]
            sharpness = sum(lengths) / len(lengths) / (x.shape[1] / block.heads) ** 0.5
            if temperature is not None:
                sharpness = 1 / temperature
            path = path + block.branch(x, lambda q, k, v, s=sharpness: gathered(q, k, v, s, iterations))
        return vit.cosines(path)

    return vit.maps(one)


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize(
    "options",
    [{"depth": 1}, {"depth": 2, "iterations": 0}, {"depth": 2, "iterations": 3}, {"depth": 2, "temperature": 0.05}, {}],
)
def test_the_equation(kind: str, options: dict[str, Any]) -> None:
    """By default a depth beyond the tower, which means all of it."""
    vit = plain_vit(kind)
    assert_equal(vit.ours("gem", **options), expected(vit, **{"depth": len(vit.blocks), **options}))


def gem_torch(model: Any, images: Tensor, text: Tensor, **options: Any) -> Tensor:
    """`[B, P, H, W]` in 0–1.

    Blocks that it leaves alone get tokens as `torch.nn.MultiheadAttention` took them in its time, [T, B, d]: left as
    open_clip builds them today, each token would attend to itself alone.
    """
    gem = pytest.importorskip("gem", reason="gem_torch is not installed: make setup")
    theirs = copy.deepcopy(model)
    for block in theirs.visual.transformer.resblocks:
        block.attn.batch_first = False
    wrapped = gem.GEMWrapper(theirs, tokenizer, **options).eval()
    wrapped.encode_text = lambda texts: text[None]  # the same embeddings, without its own template
    with torch.no_grad():
        return wrapped(images, ["a name"] * len(text))


def over_input(maps: Tensor, images: Tensor) -> Tensor:
    return min_max(F.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False))


def test_gem_torch_agrees_by_default() -> None:
    """Neither side is told how many blocks: its depth of 7 edits 6."""
    model, backbone, images, text = twelve_blocks()
    theirs = gem_torch(model, images, text)
    assert_same_maps(over_input(ours("gem", backbone, images, text), images), theirs)


def test_gem_torch_agrees_with_other_options_on_a_picture_that_is_not_square() -> None:
    """Its `ss_attn_temp` multiplies."""
    vit = plain_vit("open_clip")
    theirs = gem_torch(open_clip_model(), vit.images, vit.text, depth=4, ss_attn_iter=2, ss_attn_temp=20.0)
    maps = vit.ours("gem", depth=3, iterations=2, temperature=0.05)
    assert_same_maps(over_input(maps, vit.images), theirs)
