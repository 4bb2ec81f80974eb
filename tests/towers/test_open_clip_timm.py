import copy
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.timm_model import TimmModel
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import UsageError
from cliploc.towers._open_clip_timm import TimmCnn, TimmVit
from cliploc.towers.open_clip import ADAPTERS
from cliploc.towers.tower import Backbone, Needs
from tests.tiny import seeded
from tests.tolerances import assert_rounded
from tests.towers.seam import (
    SENTENCES,
    TEXT,
    BackboneContract,
    TransformerContract,
    perturb,
    pictures,
    real_tower,
    their_image_embedding,
    timms_attention,
    tokenizer,
)

# timm model, what is made smaller, timm_proj; D is 24 wherever the family projects.
SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 4}
VITS: dict[str, tuple[str, dict[str, Any]]] = {
    "SigLIP": ("vit_base_patch16_siglip_224", {"num_classes": 0, "global_pool": "map", "img_size": 64}),
    "Perception Encoder": ("vit_pe_core_base_patch16_224", {"num_classes": 24, "img_size": 64}),
    "EVA-02": ("eva02_base_patch16_clip_224", {"num_classes": 24, "global_pool": "token", "img_size": 64}),
    "EVA-02-E": ("eva02_enormous_patch14_clip_224", {"num_classes": 24, "global_pool": "token", "img_size": 56}),
    "layer scale": (
        "eva02_base_patch16_clip_224",
        {"num_classes": 24, "global_pool": "token", "img_size": 64, "init_values": 0.3},
    ),
    "EVA-01": ("eva_giant_patch14_224", {"num_classes": 24, "global_pool": "token", "img_size": 56}),
    "mean": ("vit_medium_patch16_gap_256", {"num_classes": 24, "img_size": 64, "init_values": 0.3}),
    "norms on queries and keys": ("vit_base_patch16_siglip_224", {"num_classes": 0, "img_size": 64, "qk_norm": True}),
}


def with_trunk(trunk: nn.Module, embed_dim: int, proj: str | None = None) -> Any:
    """An open_clip model around a timm trunk; open_clip itself builds only whole architectures by name."""
    vision = {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": proj or "none", "image_size": 160}
    model = open_clip.CLIP(embed_dim, vision, TEXT)
    model.visual.trunk = trunk
    if proj is not None:
        head = TimmModel("test_vit", embed_dim, image_size=160, proj=proj).head
        head.proj = nn.Linear(trunk.num_features, embed_dim, bias=False)
        model.visual.head = head
    if hasattr(trunk, "patch_embed"):
        model.visual.image_size = trunk.patch_embed.img_size
    return model


def small_vit(variant: str) -> Any:
    name, options = VITS[variant]

    def build() -> Any:
        trunk = timm.create_model(name, **SMALL, **options)
        return with_trunk(trunk, 24 if options["num_classes"] else SMALL["embed_dim"])

    return perturb(seeded(build, 0))


def take_size(visual: Any, height: int, width: int) -> None:
    """Sets a tower to another input size by timm's own means."""
    trunk = visual.trunk
    if isinstance(trunk.patch_embed, timm.layers.PatchEmbed):
        visual.set_input_size((height, width))
        return
    trunk.patch_embed.strict_img_size = False  # a hybrid's convolutions take any size
    if trunk.pos_embed is not None:
        grid, placed = [height // 16, width // 16], 0 if trunk.no_embed_class else trunk.num_prefix_tokens
        positions = timm.layers.resample_abs_pos_embed(trunk.pos_embed.detach(), grid, num_prefix_tokens=placed)
        trunk.pos_embed = nn.Parameter(positions)


@pytest.mark.parametrize("variant", VITS, scope="class")
class TestSmallTowers(TransformerContract):
    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, variant: str) -> Any:
        return small_vit(variant)

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, model: Any) -> TimmVit:
        return TimmVit(model, tokenizer, "small")

    def resized(self, model: Any, height: int, width: int) -> Any:
        other = copy.deepcopy(model)
        take_size(other.visual, height, width)
        return other

    def blocks(self, model: Any) -> Any:
        return model.visual.trunk.blocks

    def their_block(self, model: Any, entering: Tensor) -> Tensor:
        rope = getattr(model.visual.trunk, "rope", None)
        return self.blocks(model)[-1](entering, **({} if rope is None else {"rope": rope.get_embed()}))

    def their_attention(self, model: Any, index: int, entering: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        rope = getattr(model.visual.trunk, "rope", None)
        if rope is None:
            return timms_attention(self.blocks(model)[index], entering)
        assert grid == model.visual.trunk.patch_embed.grid_size
        return timms_attention(self.blocks(model)[index], entering, rope=rope.get_embed())


@pytest.mark.parametrize(
    ("name", "prefix", "pool"),
    [("ViT-B-16-SigLIP", 0, "map"), ("EVA02-B-16", 1, "token"), ("MobileCLIP-B", 1, "token"), ("ViTamin-S", 0, "avg")],
)
def test_open_clips_vits_are_reproduced(name: str, prefix: int, pool: str) -> None:
    model = real_tower(name, {"depth": 2})
    backbone = TimmVit(model, tokenizer, name, copied=False)
    assert (backbone.prefix_tokens, backbone.trunk.global_pool, backbone.stride) == (prefix, pool, 16)
    images = pictures(*backbone.input_hw, n=1)
    trace = backbone.trace(images, Needs(features=(-1,), attention=(-1,)))
    with torch.no_grad():
        reference = F.normalize(backbone.visual(images), dim=-1)
    assert_rounded(trace.embedding, reference, backbone)
    assert trace.attention[-1].shape[-1] == prefix + 14 * 14
    assert backbone.dense(trace).shape == (1, backbone.embedding_size, 14, 14)
    wide = pictures(160, 288, n=1)
    embedding = backbone.encode_image(wide)  # before the very same tower is told its new size
    take_size(backbone.visual, 160, 288)
    with torch.no_grad():
        assert_rounded(embedding, F.normalize(backbone.visual(wide), dim=-1), backbone)


def test_siglips_pool_says_where_it_looks() -> None:
    model = small_vit("SigLIP")
    backbone = TimmVit(model, tokenizer, "siglip")
    assert backbone.prefix_tokens == 0
    images = pictures(64, 64)
    trace = backbone.trace(images, Needs(tokens=(-1,), attention=(-1,)))
    pool = copy.deepcopy(model.visual.trunk.attn_pool)
    pool.fused_attn = False
    seen: list[Tensor] = []
    softmax = torch.Tensor.softmax
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "softmax", lambda x, dim: seen.append(softmax(x, dim)) or seen[-1])
        pool(model.visual.trunk.norm(trace.tokens[-1]))
    assert trace.pool_attention is not None
    assert trace.pool_attention.shape == (2, 4, 1, 16)
    assert_rounded(trace.pool_attention, seen[0], backbone)
    # The value path: were all the attention on one patch, the embedding would be that patch's reading.
    alone = trace.tokens[-1][:, 3:4].expand(-1, 16, -1)
    assert_rounded(backbone.pool(alone)[0], backbone.read_tokens(alone)[:, 0], backbone)


@pytest.mark.parametrize("family", ["SigLIP", "Perception Encoder"])
@torch.no_grad()
def test_the_pools_mean_of_readings_is_the_embedding_but_for_its_mlp(family: str) -> None:
    """Where heads attend alike, Σ a_t·reading_t is the embedding, but for the MLP: of a mean instead of each."""
    backbone = TimmVit(small_vit(family), tokenizer, family)
    trunk, pool = backbone.trunk, backbone.trunk.attn_pool
    tokens = backbone.trace(pictures(64, 64), Needs(tokens=(-1,))).tokens[-1]
    pool.q.weight.zero_()
    pool.q.bias.zero_()
    pooled, attention = backbone.pool(tokens)
    share = attention[:, 0, 0]  # [B, T], of any head
    assert_rounded(attention, share[:, None, None].expand_as(attention), backbone)
    seen = tokens if share.shape[1] == tokens.shape[1] else tokens[:, backbone.prefix_tokens :]
    mean = torch.einsum("bt,btd->bd", share, backbone.read_tokens(seen))  # [B, D]

    def of_mlp(x: Tensor) -> Tensor:
        return pool.mlp(pool.norm(x))

    values = pool.proj(pool.kv(trunk.norm(seen)).chunk(2, dim=-1)[1])  # [B, T, d]
    of_mean = torch.einsum("bt,btd->bd", share, values)
    difference = of_mlp(of_mean) - torch.einsum("bt,btd->bd", share, of_mlp(values))
    head = trunk.head.weight if isinstance(trunk.head, nn.Linear) else torch.eye(difference.shape[-1])
    assert_rounded(pooled - mean, difference @ head.T, backbone)
    assert difference.abs().max() > 1e-4
    pool.mlp.fc2.weight.zero_()
    assert_rounded(backbone.pool(tokens)[0], torch.einsum("bt,btd->bd", share, backbone.read_tokens(seen)), backbone)


# --------------------------------------------------------------------------------------------------------------- CNNs
CNNS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "ConvNeXt": ("convnext_atto", {"num_classes": 0, "depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}, "linear"),
    "FastViT": ("fastvit_mci0", {"num_classes": 24, "layers": (1, 1, 1, 1), "embed_dims": (8, 16, 32, 64)}, None),
}


def small_cnn(variant: str) -> Any:
    name, options, proj = CNNS[variant]
    return perturb(seeded(lambda: with_trunk(timm.create_model(name, **options), 24, proj), 0), 0.05)


@pytest.fixture(scope="module", params=CNNS)
def cnn(request: pytest.FixtureRequest) -> tuple[Any, TimmCnn]:
    model = small_cnn(request.param)
    return model, TimmCnn(model, tokenizer, request.param)


@pytest.mark.parametrize("kind", CNNS, scope="class")
class TestSmallCnns(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, kind: str) -> TimmCnn:
        return TimmCnn(small_cnn(kind), tokenizer, kind)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)], ids=str)
def test_a_cnn_tower_is_open_clips_at_any_size(cnn: tuple[Any, TimmCnn], size: tuple[int, int]) -> None:
    model, backbone = cnn
    images = pictures(*size)
    trace = backbone.trace(images, Needs(features=(-1, -2, -3)))
    theirs = their_image_embedding(model, images)
    assert isinstance(backbone, Backbone)
    assert_rounded(trace.embedding, theirs, backbone)
    assert trace.grid == backbone.grid(*size) == (size[0] // 32, size[1] // 32)
    assert trace.features[backbone.middle_stage].shape[-2:] == (size[0] // 16, size[1] // 16)
    for stage, features in trace.features.items():
        assert_rounded(backbone.head(features, trace, stage), theirs, backbone)
    with torch.no_grad():
        assert_rounded(
            backbone.encode_text(SENTENCES), F.normalize(model.encode_text(tokenizer(SENTENCES)), dim=-1), backbone
        )


def test_a_cnns_locations_average_to_the_embedding_exactly(cnn: tuple[Any, TimmCnn]) -> None:
    model, backbone = cnn
    images = pictures(96, 160)
    dense = backbone.dense(backbone.trace(images, Needs(features=(-1,))))
    assert dense.shape == (2, 24, 3, 5)
    with torch.no_grad():
        theirs = model.encode_image(images)
    torch.testing.assert_close(dense.mean(dim=(-2, -1)), theirs, rtol=1e-4, atol=1e-5)
    assert dense.std(dim=(-2, -1)).mean() > 0.01 * theirs.abs().mean(), "every location reads the same"


def test_an_mlp_projection_is_read_location_by_location() -> None:
    model = small_cnn("ConvNeXt")
    model.visual.head = perturb(TimmModel("test_convnext", 24, pool="", proj="mlp").head)
    width = model.visual.trunk.num_features
    model.visual.head.mlp = perturb(timm.layers.Mlp(width, 48, 24))
    backbone = TimmCnn(model, tokenizer, "mlp")
    images = pictures(32, 32)  # one location: the reading is the embedding
    read = backbone.dense(backbone.trace(images, Needs(features=(-1,))))[:, :, 0, 0]
    assert_rounded(F.normalize(read, dim=-1), their_image_embedding(model, images), backbone)


@pytest.mark.parametrize(
    ("name", "timms"), [("convnext_base", {"depths": (1, 1, 2, 1)}), ("MobileCLIP-S1", {"layers": (1, 1, 2, 1)})]
)
def test_open_clips_cnns_are_reproduced(name: str, timms: dict[str, Any]) -> None:
    model = real_tower(name, timms)
    backbone = TimmCnn(model, tokenizer, name)
    images = pictures(*backbone.input_hw, n=1)
    trace = backbone.trace(images, Needs(features=(-1,)))
    assert_rounded(trace.embedding, their_image_embedding(model, images), backbone)
    assert trace.grid == backbone.grid(*backbone.input_hw)


# ---------------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize("trunk", ["swin_tiny_patch4_window7_224", "vit_relpos_small_patch16_224"])
def test_towers_of_another_build_are_refused(trunk: str) -> None:
    model = small_cnn("FastViT")
    visual = model.visual
    visual.trunk = timm.create_model(trunk)
    assert not TimmVit.supports(visual)
    assert not TimmCnn.supports(visual)
    for adapter in (TimmVit, TimmCnn):
        with pytest.raises(UsageError, match=f"odd has an image tower that {adapter.__name__} does not support"):
            adapter(model, tokenizer, "odd")


def test_every_adapter_registers_itself_and_each_tower_has_one() -> None:
    resnet = open_clip.CLIP(24, {"layers": (1, 1, 1, 1), "width": 8, "image_size": 32}, TEXT)
    for model, part in (
        (small_vit("EVA-02"), "TimmVit"), (small_cnn("FastViT"), "TimmCnn"), (resnet, "OpenClipResNet"),
        (real_tower("ViT-B-16", layers=1), "OpenClipVit"),
    ):  # fmt: skip
        assert [one.__name__ for one in ADAPTERS if one.supports(model.visual)] == [part]
