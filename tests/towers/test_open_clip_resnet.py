"""CLIP's ResNets: the split tower is open_clip's tower, on any input, from any stage."""

import copy

import open_clip
import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn
from torch.nn import functional as F

from cliploc.towers._open_clip_towers import OpenClipResNet
from cliploc.towers.tower import Needs
from tests.tolerances import assert_rounded
from tests.towers.seam import BackboneContract, assert_state, pictures, state_of
from tests.towers.small_clip import TEXTS, season, small_clip, tokenizer

STAGES = (-5, -4, -3, -2, -1)


@pytest.fixture(scope="module")
def model():
    return small_clip()


@pytest.fixture(scope="module")
def backbone(model):
    return OpenClipResNet(model, tokenizer(), "small")


class TestSmall(BackboneContract):
    """What it says of itself; the fixture is the module's."""


@pytest.mark.parametrize("name", ["small", "RN50"])
def test_equals_open_clip(name, model):
    tokens, side = tokenizer(), 64
    if name == "RN50":
        with torch.random.fork_rng(devices=[]):
            model = open_clip.create_model("RN50").eval()
            season(model)
        tokens, side = open_clip.get_tokenizer("RN50"), 224
    backbone, images = OpenClipResNet(model, tokens, name), pictures(side, side, n=1)
    with torch.no_grad():
        expected = model.encode_image(images, normalize=True)
        expected_text = model.encode_text(tokens(TEXTS), normalize=True)
    assert_rounded(backbone.encode_image(images), expected, backbone)
    assert_rounded(backbone.encode_text(TEXTS), expected_text, backbone)
    assert backbone.logit_scale == pytest.approx(1 / 0.07)
    assert (backbone.input_hw, backbone.resize_policy) == ((side, side), "crop")
    assert backbone.trace(images, Needs(features=(-1,))).features[-1].shape[-2:] == (side // 32, side // 32)


def test_texts_are_read_without_what_fills_the_context_and_their_beginning_once(model, backbone, monkeypatch):
    texts, lengths = ["a photo of a cat", "a photo of a fire engine", "a photo of a dog"], []
    expected = model.encode_text(tokenizer()(texts), normalize=True)
    transformer = backbone.text.model.transformer
    with transformer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[:2])):
        assert_rounded(backbone.encode_text(texts), expected, backbone)
    assert lengths == [(1, 5 + 2 + 3 + 2)]  # with what begins and ends a text
    for most in (1, 6):  # in three and in two sequences
        monkeypatch.setattr("cliploc.towers._open_clip_towers.PACKED", most)
        assert_rounded(backbone.encode_text(texts), expected, backbone)


def at_other_size(visual, features):
    """open_clip's pool on a grid it was not built for: its positions resized by timm, an implementation not ours."""
    pool = copy.deepcopy(visual.attnpool)
    positions = pool.positional_embedding.detach()[None]  # [1, 1+N, C]
    resized = resample_abs_pos_embed(positions, list(features.shape[-2:]), num_prefix_tokens=1)
    pool.positional_embedding = nn.Parameter(resized[0])
    with torch.no_grad():
        return F.normalize(pool(features), dim=-1)


@pytest.mark.parametrize(("height", "width"), [(64, 160), (96, 64), (32, 96), (128, 128)])
def test_other_sizes(model, backbone, height, width):
    images = pictures(height, width)
    with torch.no_grad():
        stages = model.visual.forward_intermediates(images, intermediates_only=True)["image_intermediates"]
    expected = at_other_size(model.visual, stages[-1])
    trace = backbone.trace(images, Needs(features=STAGES))
    assert trace.grid == (height // 32, width // 32) == backbone.grid(height, width)
    assert trace.features[backbone.middle_stage].shape[-2:] == (height // 16, width // 16)
    assert_rounded(trace.embedding, expected, backbone)
    for stage, theirs in zip(STAGES, stages, strict=True):
        assert_rounded(trace.features[stage], theirs, backbone)
        finished = backbone.head(trace.features[stage], trace, stage)
        assert_rounded(finished, expected, backbone)


def test_the_users_model_stays_as_it_was():
    model = small_clip().train()
    before, structure = state_of(model), repr(model)
    backbone = OpenClipResNet(model, tokenizer(), "small").to(torch.bfloat16)
    backbone.encode_image(pictures(64, 64))
    backbone.encode_text(TEXTS)
    assert repr(model) == structure
    assert_state(model, before)
