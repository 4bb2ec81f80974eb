"""CLIP Surgery against its equations on three towers: the path, several prompts, one prompt."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc import Localizer
from cliploc.methods import Context, methods
from tests.methods.peers import min_max
from tests.methods.plain_vit import TOWERS, PlainVit, assert_equal, attend, plain_vit
from tests.tiny import tower
from tests.tolerances import STRETCHED, assert_rounded


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
