"""open_clip's own ResNets and ViTs: the split tower is open_clip's, on any input, from any stage."""

import copy
from typing import Any

import open_clip
import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.towers._open_clip_towers import OpenClipResNet, OpenClipVit
from cliploc.towers.tower import Needs
from tests.tiny import seeded
from tests.tolerances import assert_rounded
from tests.towers.seam import (
    TEXT,
    BackboneContract,
    TransformerContract,
    assert_state,
    perturb,
    pictures,
    real_tower,
    state_of,
    their_image_embedding,
    tokenizer,
)
from tests.towers.small_clip import TEXTS, season, small_clip
from tests.towers.small_clip import tokenizer as clip_tokenizer

STAGES = (-5, -4, -3, -2, -1)


@pytest.fixture(scope="module")
def model():
    return small_clip()


@pytest.fixture(scope="module")
def backbone(model):
    return OpenClipResNet(model, clip_tokenizer(), "small")


class TestSmall(BackboneContract):
    """What it says of itself; the fixture is the module's."""


@pytest.mark.parametrize("name", ["small", "RN50"])
def test_equals_open_clip(name, model):
    tokens, side = clip_tokenizer(), 64
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
    expected = model.encode_text(clip_tokenizer()(texts), normalize=True)
    transformer = backbone.text.model.transformer
    with transformer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[:2])):
        assert_rounded(backbone.encode_text(texts), expected, backbone)
    assert lengths == [(1, 5 + 2 + 3 + 2)]  # with what begins and ends a text
    assert backbone.packs_texts
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
    backbone = OpenClipResNet(model, clip_tokenizer(), "small").to(torch.bfloat16)
    backbone.encode_image(pictures(64, 64))
    backbone.encode_text(TEXTS)
    assert repr(model) == structure
    assert_state(model, before)


# ----------------------------------------------------------------------------------------------------------------- ViTs
SMALL = {"layers": 3, "width": 48, "head_width": 12, "patch_size": 8, "image_size": 40}
VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean": {"pool_type": "avg", "ls_init_value": 0.3},
    "mean, norm after": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    "CoCa": {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 5},
    "CoCa, one width": {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 5, "width": 24},
    "custom blocks": {
        "qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True,
        "ls_init_value": 0.3,
    },
}  # fmt: skip


def small_model(quick_gelu: bool = False, **vision: Any) -> Any:
    def build() -> Any:
        return open_clip.CLIP(24, {**SMALL, **vision}, TEXT, quick_gelu=quick_gelu)

    return perturb(seeded(build, 0))


def resized(model: Any, height: int, width: int) -> Any:
    """Another input size by hand: rows of the table read back into a picture, resized by torchvision."""
    from torchvision.transforms.v2.functional import InterpolationMode, resize

    larger, patch = copy.deepcopy(model), model.visual.patch_size[0]
    table = model.visual.positional_embedding.detach()
    picture = table[1:].reshape(*model.visual.grid_size, -1).movedim(-1, 0)
    picture = resize(picture, [height // patch, width // patch], InterpolationMode.BICUBIC, antialias=True)
    larger.visual.positional_embedding = nn.Parameter(torch.cat([table[:1], picture.movedim(0, -1).flatten(0, 1)]))
    return larger


@pytest.mark.parametrize("variant", VARIANTS, scope="class")
class TestSmallTowers(TransformerContract):
    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, variant: str) -> Any:
        return small_model(quick_gelu=variant == "class token", **VARIANTS[variant])

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, model: Any) -> OpenClipVit:
        return OpenClipVit(model, tokenizer, "small")

    def resized(self, model: Any, height: int, width: int) -> Any:
        return resized(model, height, width)

    def blocks(self, model: Any) -> Any:
        return model.visual.transformer.resblocks

    def their_attention(self, model: Any, index: int, entering: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        block = self.blocks(model)[index]
        with torch.no_grad():
            x = block.ln_1(entering)
            if isinstance(block.attn, nn.MultiheadAttention):
                out, attention = block.attn(x, x, x, need_weights=True, average_attn_weights=False)
                return attention, block.ls_1(out)
            seen: list[Tensor] = []
            unfused = copy.deepcopy(block.attn)  # open_clip's own softmax, made visible by its dropout of 0
            unfused.use_fsdpa = False
            unfused.attn_drop.register_forward_hook(lambda module, inputs, out: seen.append(out))
            # Its unfused path multiplies with bmm, which takes three dimensions; ours has four.
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "bmm", torch.matmul)
                out = unfused(x)
            return seen[0], block.ls_1(block.ln_attn(out))


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("ViT-B-32", {"layers": 3}), ("ViT-B-32-quickgelu", {"layers": 3}), ("ViT-B-16", {"layers": 3}),
        ("ViT-L-14-336", {"layers": 1}), ("ViT-H-14-CLIPA", {"layers": 1}), ("coca_ViT-B-32", {"layers": 3}),
    ],
)  # fmt: skip
def test_open_clips_architectures_are_reproduced(name: str, cut: dict[str, int]) -> None:
    model = real_tower(name, **cut)
    backbone = OpenClipVit(model, tokenizer, name)
    images = pictures(*backbone.input_hw, n=1)
    trace = backbone.trace(images, Needs(attention=(-1,)))
    assert_rounded(trace.embedding, their_image_embedding(model, images), backbone)
    cells = [side // backbone.stride for side in backbone.input_hw]
    assert list(trace.grid) == cells
    taller = pictures((cells[0] + 2) * backbone.stride, (cells[1] - 3) * backbone.stride, n=1)
    assert_rounded(
        backbone.encode_image(taller), their_image_embedding(resized(model, *taller.shape[-2:]), taller), backbone
    )


def test_positions_are_resized_as_open_clip_resizes_those_of_a_checkpoint() -> None:
    model = small_model()
    larger = small_model(image_size=64)
    weights = model.state_dict()
    open_clip.model.resize_pos_embed(weights, larger)
    larger.load_state_dict(weights)
    images = pictures(64, 64)
    assert_rounded(
        OpenClipVit(model, tokenizer, "small").encode_image(images), their_image_embedding(larger, images), model
    )


def test_coca_also_says_where_its_pool_looks() -> None:
    model = small_model(**VARIANTS["CoCa"])
    backbone = OpenClipVit(model, tokenizer, "coca")
    trace = backbone.trace(pictures(40, 40), Needs(tokens=(-1,), attention=(-1,)))
    pool = model.visual.attn_pool
    with torch.no_grad():
        x = pool.ln_k(trace.tokens[-1])
        queries = pool.ln_q(pool.query)[None].expand(2, -1, -1)
        _, attention = pool.attn(queries, x, x, need_weights=True, average_attn_weights=False)
    assert trace.pool_attention is not None
    assert_rounded(trace.pool_attention, attention[:, :, :1], backbone)


def test_preprocessing_and_scale_are_the_models() -> None:
    model = small_model()
    model.logit_scale.data.fill_(3.0)
    crop = OpenClipVit(model, tokenizer, "small")
    assert (crop.resize_policy, crop.input_hw, crop.stride, crop.embedding_size) == ("crop", (40, 40), 8, 24)
    assert crop.logit_scale == pytest.approx(20.0855, abs=1e-3)
    grey = crop.normalize(torch.full((1, 3, 8, 8), 0.5))
    mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
    assert_rounded(grey[0, :, 0, 0], (0.5 - mean) / std, 1)
    model.visual.preprocess_cfg = {"size": 40, "mean": (0.5,) * 3, "std": (0.25,) * 3, "resize_mode": "squash"}
    squash = OpenClipVit(model, tokenizer, "small")
    assert squash.resize_policy == "squash"
    assert_rounded(squash.normalize(torch.ones(1, 3, 8, 8)), torch.full((1, 3, 8, 8), 2.0), 1)


def test_open_clips_mixed_precision_keeps_norms_in_float32() -> None:
    def build() -> Any:
        return open_clip.CLIP(24, SMALL, TEXT, cast_dtype=torch.bfloat16)

    model = perturb(seeded(build, 0))
    images = pictures(40, 40)
    full = OpenClipVit(model, tokenizer, "full").trace(images, Needs(attention=(-1,)))
    open_clip.model.convert_weights_to_lp(model, torch.bfloat16)
    backbone = OpenClipVit(model, tokenizer, "mixed")
    assert (backbone.dtype, backbone.visual.ln_post.weight.dtype) == (torch.bfloat16, torch.float32)
    mixed = backbone.trace(images, Needs(attention=(-1,)))
    assert F.cosine_similarity(mixed.embedding, full.embedding).min() > 0.999
    torch.testing.assert_close(mixed.attention[-1], full.attention[-1], rtol=0, atol=0.02)
