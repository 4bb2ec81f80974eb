"""`Localizer.trace`: the tensors are those that maps are made of."""

import numpy as np
import pytest
import torch

from cliploc.errors import InputError, UsageError
from cliploc.localizer import Localizer
from cliploc.towers.tower import Needs
from tests.commands import CAT
from tests.tolerances import assert_rounded

NAMES = ["cat|kitten", "dog"]


@pytest.fixture(scope="module")
def vit():
    localizer = Localizer("mini-vit", method="legrad", method_options={"blocks": "all"})
    return localizer, localizer.trace(CAT, NAMES)


def test_attention_times_values_is_what_the_block_gathers(vit):
    _, inside = vit
    q, k, v = inside.projections(-1)
    own = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    assert_rounded(own, inside.attention(-1), inside.backbone)
    class_token, patches = inside.attention(-1)[:, 0], inside.class_attention(-1)  # [H, T], [H, h, w]
    assert torch.equal(patches.flatten(1), class_token[:, inside.tower.prefix_tokens :])
    end = inside.tower.end(inside.trace.entering[-1], -1, inside.grid)
    assert_rounded(end.gathered[0], own @ v, inside.backbone)
    assert_rounded(end.tokens()[0], inside.tokens(-1), inside.backbone)


def test_the_heads_average_to_the_methods_map(vit):
    _, inside = vit
    blocks = [inside.head_maps(block).mean(dim=1) for block in range(-inside.tower.depth, 0)]
    torch.testing.assert_close(torch.stack(blocks).mean(dim=0), inside.raw, rtol=1e-4, atol=1e-7)


def test_the_last_blocks_map_is_the_towers_own_reading(vit):
    _, inside = vit
    maps = inside.block_maps()
    assert maps.shape == (inside.tower.depth, 2, *inside.grid)
    _, w = inside.grid
    patch = inside.tokens(-1)[None, inside.tower.prefix_tokens + 2 * w + 1]
    read = torch.nn.functional.normalize(inside.tower.read_tokens(patch[None])[0, 0], dim=-1)
    assert maps[-1, :, 2, 1].tolist() == pytest.approx((inside.text @ read).tolist(), abs=1e-5)


@pytest.mark.parametrize("model", ["mini", "mini-vit"])
def test_raw_maps_embedding_and_text_are_those_of_a_run(model):
    localizer = Localizer(model, method="layer_cam" if model == "mini" else "gem")
    inside = localizer.trace(CAT, NAMES)
    found = localizer(CAT, NAMES)
    assert inside.names == ("cat", "dog")
    assert np.abs(inside.embedding.numpy() - found.embedding).max() < 1e-6
    assert torch.equal(inside.text, localizer.embed_names(NAMES))
    assert inside.raw.shape == (2, *inside.grid)
    up = torch.nn.functional.interpolate(inside.raw.relu()[None], inside.frame.input_hw, mode="bilinear")[0]
    best = [np.unravel_index(int(one.argmax()), one.shape) for one in (up[0].numpy(), found.maps[0])]
    assert np.abs(np.subtract(best[0], best[1])).max() <= localizer.backbone.stride
    assert inside.cosines().abs().max() <= 1 + 1e-5


def test_what_is_not_there_is_said():
    cnn = Localizer("mini").trace(CAT, NAMES)
    with pytest.raises(UsageError, match="expected a ViT tower, got mini, a CNN: choose another model"):
        cnn.block_maps()
    with pytest.raises(UsageError, match=r"expected a block that the trace kept \(none\), got -1: ask for it with"):
        cnn.attention()
    vit = Localizer("mini-vit", method="gem")
    lean = vit.trace(CAT, NAMES, "raw_attention", needs=Needs(features=(-1,)))
    assert -1 in lean.trace.attention
    with pytest.raises(UsageError, match="expected a method with method_options"):
        vit.trace(CAT, NAMES, method_options={"blocks": 1})


def test_a_picture_that_cannot_be_used_is_named_in_one_line(vit):
    localizer, _ = vit
    with pytest.raises(InputError, match=r"^image 0: 4×4 pixels, expected at least 8×8: use a larger picture$"):
        localizer.trace(np.zeros((4, 4, 3), np.uint8), NAMES)
