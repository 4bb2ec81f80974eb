"""GEM and CLIP Surgery, paths beside the last blocks: against their equations on three towers, and gem_torch."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc import Localizer
from cliploc.methods import Context, methods
from tests.methods.peers import assert_same_maps, min_max
from tests.methods.plain_vit import TOWERS, PlainVit, assert_equal, attend, open_clip_model, plain_vit
from tests.methods.vits import ours, twelve_blocks
from tests.tiny import tower
from tests.tolerances import STRETCHED, assert_rounded
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


# --------------------------------------------------------------------------------------------------------- CLIP Surgery
def patches(vit: PlainVit, image: Tensor, depth: int) -> Tensor:
    """The path's patches `[N, D]`, unit norm."""
    entering = vit.entering(image)
    start = len(vit.blocks) - depth
    path = entering[start]
    for x, block in zip(entering[start:-1], vit.blocks[start:], strict=True):
        path = path + block.branch(x, lambda q, k, v: attend(v, v, v))
    return F.normalize(vit.read(path[vit.prefix :]), dim=1)


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize(("depth", "requested"), [(1, 1), (2, 2), (None, 6), (None, 99)])
def test_several_prompts(kind: str, depth: int | None, requested: int) -> None:
    """Feature surgery as published, element by element; a depth beyond the tower's means all of it."""
    vit = plain_vit(kind)

    def one(image: Tensor) -> Tensor:
        found = patches(vit, image, depth or len(vit.blocks))  # [N, D]
        likeness = vit.backbone.encode_image(image[None])[0] @ vit.text.T  # [P]
        relative = torch.softmax(2 * likeness, dim=0)
        relative = relative / relative.mean()
        features = found[:, None] * vit.text[None] * relative[None, :, None]  # [N, P, D]
        return (features - features.mean(dim=1, keepdim=True)).sum(dim=-1)

    expected = vit.maps(one)
    assert_equal(vit.ours("clip_surgery", depth=requested), expected)
    if requested == 6:
        assert_equal(vit.ours("clip_surgery"), expected)


@pytest.mark.parametrize("kind", TOWERS)
def test_one_prompt_is_read_against_the_empty_string(kind: str) -> None:
    vit = plain_vit(kind)
    direction = vit.text[:1] - vit.backbone.encode_text([""])  # [1, D]
    expected = vit.maps(lambda image: patches(vit, image, len(vit.blocks)) @ direction.T)
    assert_equal(vit.ours("clip_surgery", vit.text[:1]), expected)


class Counting:
    """A text tower that remembers what it was asked."""

    def __init__(self, encode: Any) -> None:
        self.encode, self.requested = encode, []

    def __call__(self, texts: Any) -> Tensor:
        self.requested += texts
        return self.encode(texts)


@pytest.mark.parametrize("background", [(), ("a wall",)])
def test_the_localizer_puts_the_empty_name_in_the_prompts_templates(background: tuple[str, ...]) -> None:
    backbone = tower("vit")
    backbone.texts = Counting(backbone.texts)
    localizer = Localizer(backbone, method="clip_surgery", templates=["a {}.", "no {}?"], background=background)
    picture = torch.randint(0, 256, (20, 24, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8).numpy()
    found = localizer([picture, picture], ["cat"])[0]
    localizer(picture, ["cat"])
    assert backbone.texts.requested.count("a .") == backbone.texts.requested.count("no ?") == 1

    def averaged(word: str) -> Tensor:
        return F.normalize(backbone.texts.encode([f"a {word}.", f"no {word}?"]).mean(dim=0), dim=0)

    images = backbone.normalize(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)
    trace = backbone.trace(images, methods.get("clip_surgery").needs())
    # A background takes away what all texts share: there is no second time.
    shared = averaged("a wall") if background else averaged("")
    text = (averaged("cat") - shared)[None, None]  # [1, 1, D]
    ctx = Context(lambda: images, text, trace, backbone, empty_name=lambda: torch.zeros_like(shared))
    raw = methods.get("clip_surgery").function(ctx)
    expected = min_max(F.interpolate(raw, size=(20, 24), mode="bilinear", align_corners=False))[0]
    assert_rounded(found.maps, expected, backbone, STRETCHED)


def test_a_method_that_asks_nothing_redundant_costs_no_text() -> None:
    backbone = tower("vit")
    backbone.texts = Counting(backbone.texts)
    localizer = Localizer(backbone, method="maskclip", templates=["{}"], min_presence=0)
    localizer(torch.zeros(20, 24, 3, dtype=torch.uint8).numpy(), ["cat"])
    assert backbone.texts.requested == ["cat"]
