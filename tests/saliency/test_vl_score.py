"""VL-Score against its three rules; no public package has it."""

import math

import pytest
import torch

from cliploc.method import Context
from cliploc.saliency import methods
from cliploc.tower import Needs
from tests.saliency.peers import tiny_scene
from tests.saliency.test_score_cam import masked_scores, ours_mask
from tests.tiny import KINDS, planted_image, tower


@pytest.mark.parametrize("temperature", [None, 0.02])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rules(kind: str, temperature: float | None) -> None:
    """Kept above the base score; no subtraction; a softmax with temperature over the kept ones alone."""
    scene = tiny_scene(kind)
    scale = scene.backbone.logit_scale / 4 if temperature is None else 1 / temperature
    features = scene.context().features
    raw = masked_scores(scene, ours_mask, baseline=False)
    above = masked_scores(scene, ours_mask)
    maps = scene.ours("vl_score", temperature=temperature)
    sizes = set()
    for b in range(len(features)):
        for p in range(len(scene.text)):
            kept = [k for k in range(features.shape[1]) if above[b, p, k] > 0]
            sizes.add(len(kept))
            total = sum(math.exp(scale * float(raw[b, p, k])) for k in kept)
            expected = torch.zeros(features.shape[-2:])
            for k in kept:
                expected += math.exp(scale * float(raw[b, p, k])) / total * features[b, k]
            torch.testing.assert_close(maps[b, p], expected, rtol=1e-3, atol=1e-5)
    assert sizes - {0, features.shape[1]}, "no prompt kept some channels and dropped others: nothing was tested"


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_no_channel_speaks_for_is_not_found(kind: str) -> None:
    """The empty picture's own direction: every mask leads away from it. Beside it, "red" keeps its map."""
    backbone = tower(kind)
    image = planted_image("red", (5, 6), (2, 3))
    nothing = backbone.encode_image(torch.zeros_like(image))  # [1, D]
    text = torch.stack([nothing[0], backbone.encode_text(["red"])[0]])[None]
    ctx = Context(lambda: image, text, backbone.trace(image, Needs(features=(-1,))), backbone)
    absent, red = methods.get("vl_score").function(ctx)[0]
    assert torch.equal(absent, torch.zeros(5, 6))
    assert divmod(int(red.argmax()), 6) == (2, 3)


def test_dead_channels_are_never_kept() -> None:
    """However the two products of the baseline's score round."""
    backbone = tower("gap_cnn")
    image = planted_image("red", (5, 6), (2, 3))
    texts = backbone.encode_text([f"thing {i}" for i in range(40)])[None]
    ctx = Context(lambda: image, texts, backbone.trace(image, Needs(features=(-1,))), backbone)
    ctx.features.fill_(0.7)
    assert torch.equal(methods.get("vl_score").function(ctx), torch.zeros(1, 40, 5, 6))
