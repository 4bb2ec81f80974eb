"""What convolutional towers share: pools against independent implementations, heads that finish any stage, engines."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cliploc import Localizer, backbones
from cliploc.backbones._cnn import AT_ONCE, AttentionPool, GlobalAveragePool, OpenVino, run_in_parts, run_stages
from cliploc.backbones.mini import _StridedConv
from cliploc.errors import UsageError
from cliploc.tower import Backbone, DenseReading, Needs
from tests.backbones.seam import BackboneContract, pictures
from tests.backbones.small_clip import small_clip, tokenizer
from tests.commands import CAT
from tests.tiny import seeded, tower
from tests.tolerances import assert_rounded

CNN_KINDS = ("gap_cnn", "attention_pool_cnn")


def attention_pool(grid=(5, 5), channels=24, heads=3, size=10, seed=0):
    pool = seeded(lambda: AttentionPool(grid, channels, heads, size), seed)
    with torch.no_grad():
        for parameter in pool.parameters():  # larger weights than at the start: attention far from uniform
            parameter.mul_(3)
    return pool.requires_grad_(False)


def features(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(height=20, width=24, count=2):
    return features(count, 3, height, width)


def test_large_maps_are_computed_a_few_pictures_at_a_time() -> None:
    """The stages with large maps see small batches, later ones the whole batch; the outputs are those of one batch."""
    stages = [seeded(lambda i=i: torch.nn.Conv2d(3, 3, 2, stride=2), i) for i in range(5)]
    seen: list[list[int]] = [[] for _ in stages]
    x = features(5, 3, 224, 224)
    with torch.no_grad():
        for wanted in ([0, 2, 4], [1], [4]):
            expected = run_stages(stages, x, wanted)
            hooks = [
                stage.register_forward_pre_hook(lambda _, given, kept=kept: kept.append(len(given[0])))
                for stage, kept in zip(stages, seen, strict=True)
            ]
            found = run_in_parts(stages, x, wanted)
            for hook in hooks:
                hook.remove()
            for ours, theirs in zip(found, expected, strict=True):
                assert_rounded(ours, theirs, stages[0])
    assert AT_ONCE == 2 * 224 * 224
    assert [max(sizes) for sizes in seen] == [2, 2, 2, 5, 5]


# ------------------------------------------------------------------------------------------------------ attention pool
@pytest.mark.parametrize(("side", "heads"), [(1, 2), (2, 1), (5, 3), (6, 4)])
def test_the_attention_pool_and_its_gradient_are_open_clips(side, heads):
    resnet = pytest.importorskip("open_clip.modified_resnet", reason="open_clip has the pool to compare with")
    theirs = seeded(lambda: resnet.AttentionPool2d(side, 24, heads, 10), 4)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(3)
    ours = AttentionPool((side, side), 24, heads, 10)
    ours.load_state_dict(theirs.state_dict())  # strict: the names are OpenAI's
    a = features(3, 24, side, side).requires_grad_(True)
    assert_rounded(ours(a), theirs(a), ours)
    direction = features(3, 10, seed=9)
    gradients = [torch.autograd.grad((pool(a) * direction).sum(), a)[0] for pool in (ours, theirs)]
    assert gradients[0].abs().max() > 1e-3
    assert_rounded(*gradients, ours)


def test_one_head_averages_the_readings_by_its_attention():
    pool = attention_pool((3, 4), heads=1)
    a = features(2, 24, 3, 4)
    tokens = torch.cat([a.mean(dim=(-2, -1))[:, None], a.flatten(2).transpose(1, 2)], dim=1)
    tokens = tokens + pool.positional_embedding
    logits = torch.einsum("bc,bnc->bn", pool.q_proj(tokens[:, 0]), pool.k_proj(tokens)) / 24**0.5
    weights = logits.softmax(dim=1)
    assert weights.max() > 3 / 13  # some token matters more than others
    readings = torch.cat(
        [pool.c_proj(pool.v_proj(tokens[:, :1])).transpose(1, 2), pool.read_locations(a).flatten(2)], dim=2
    )
    assert_rounded(pool(a), torch.einsum("bn,bdn->bd", weights, readings), pool)


def test_positions_are_resized_for_other_grids():
    """Bicubic over height and width, not swapped; the mean token's stays."""
    pool = attention_pool((4, 6))
    learnt = pool.positional_embedding[1:].T.reshape(1, 24, 4, 6)
    resized = F.interpolate(learnt, size=(7, 5), mode="bicubic", antialias=True, align_corners=False)
    other = AttentionPool((7, 5), 24, 3, 10)
    weights = pool.state_dict()
    weights["positional_embedding"] = torch.cat([pool.positional_embedding[:1], resized[0].flatten(1).T])
    other.load_state_dict(weights)
    a = features(2, 24, 7, 5)
    assert_rounded(pool(a), other(a), pool)
    assert_rounded(pool.read_locations(a), other.read_locations(a), pool)


# ------------------------------------------------------------------------------------------------------- average pool
@given(st.integers(1, 7), st.integers(1, 7))
def test_readings_of_a_gap_tower_average_to_the_pooled_feature(h, w):
    pool = GlobalAveragePool(features(6, seed=3))
    a = features(2, 6, h, w)
    assert_rounded(pool.read_locations(a).mean(dim=(-2, -1)), pool(a), h * w)
    assert_rounded(pool(a), a.mean(dim=(-2, -1)) - features(6, seed=3), h * w)


# --------------------------------------------------------------------------------------------------------------- tower
@pytest.mark.parametrize("kind", CNN_KINDS, scope="class")
class TestTinyTowers(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, kind: str) -> Any:
        return tower(kind)


@pytest.mark.parametrize("hw", [(20, 24), (28, 16)])
@pytest.mark.parametrize("kind", CNN_KINDS)
def test_the_head_finishes_the_tower_from_every_stage(kind, hw):
    backbone = tower(kind).requires_grad_(True)
    x = images(*hw)
    trace = backbone.trace(x, Needs(features=(-1, -2, -3)))
    assert trace.grid == backbone.grid(*hw) == (hw[0] // 4, hw[1] // 4)
    assert set(trace.features) == {-1, -2, -3}
    assert set(backbone.trace(x, Needs(features=(-2,))).features) == {-2}
    torch.testing.assert_close(trace.features[-2], backbone.stages[1](backbone.stages[0](x)).detach())
    assert not trace.embedding.requires_grad
    embedding = backbone.encode_image(x)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(trace.embedding, embedding)
    for stage, kept in trace.features.items():
        kept.requires_grad_(True)
        finished = backbone.head(kept, trace, stage)
        torch.testing.assert_close(finished.detach(), embedding)
        (gradient,) = torch.autograd.grad(finished[:, 0].sum(), kept)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(("height", "grid"), [(20, 5), (21, 6), (4, 1), (1, 1)])
def test_the_grid_rounds_up(height, grid):
    assert tower("gap_cnn").grid(height, 8) == (grid, 2)


def test_refusals():
    backbone = tower("gap_cnn")
    assert isinstance(backbone, Backbone)
    for needs in (Needs(tokens=(-1,)), Needs(attention="all")):
        with pytest.raises(UsageError, match="gap_cnn is a CNN without tokens or attention: choose a method"):
            backbone.trace(images(), needs)
    with pytest.raises(UsageError, match=r"expected a stage of gap_cnn from -3 to -1 \(the last\), got -4"):
        backbone.trace(images(), Needs(features=(-4,)))
    trace = backbone.trace(images(), Needs(features=(-1,)))
    with pytest.raises(UsageError, match=r"expected a stage of gap_cnn from -3 to -1 \(the last\), got 0"):
        backbone.head(trace.features[-1], trace, 0)
    with pytest.raises(UsageError, match="gap_cnn is a CNN, but an attention rule needs a ViT tower: choose"):
        backbone.dense(trace, DenseReading(lambda q, k, v, scale: v))


# ------------------------------------------------------------------------------------------------------------- engines
@pytest.fixture
def openvino() -> None:
    pytest.importorskip("openvino")


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-3 * expected.abs().max())


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize("hw", [(64, 64), (75, 98)])
def test_every_stage_of_mini_is_torchs(hw: tuple[int, int]) -> None:
    mini = backbones.create("mini")
    fast = backbones.with_engine(mini, "openvino")
    needs = Needs(features=tuple(range(-len(mini.stages), 0)))  # type: ignore[attr-defined]
    for count in (1, 3):
        images = pictures(*hw, n=count)
        expected, found = mini.trace(images, needs), fast.trace(images, needs)
        assert found.grid == expected.grid
        assert close(found.embedding, expected.embedding)
        assert sorted(found.features) == sorted(expected.features)
        assert all(close(found.features[stage], one) for stage, one in expected.features.items())


@pytest.mark.usefixtures("openvino")
def test_a_resnet_is_torchs() -> None:
    from cliploc.backbones.open_clip_resnet import OpenClipResNet

    resnet = OpenClipResNet(small_clip(), tokenizer, "small")
    images = pictures(64, 96)
    fast = backbones.with_engine(resnet, "openvino")
    assert close(fast.encode_image(images), resnet.encode_image(images))


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize("method", ["cam", "layer_cam", "score_cam"])
def test_maps_and_boxes_are_torchs(method: str) -> None:
    options = {"budget": 16} if method == "score_cam" else {"stages": (-1, -2)} if method == "layer_cam" else {}
    how = {"method": method, "method_options": options, "device": "cpu", "image_size": 96}
    plain, fast = (Localizer(**how, engine_backend=engine)(CAT, ["cat"]) for engine in ("torch", "openvino"))
    assert abs(plain.heatmaps - fast.heatmaps).max() <= 1e-3
    assert len(plain.boxes) == len(fast.boxes)


@pytest.mark.skipif("ONEDNN_MAX_CPU_ISA" in os.environ, reason="OpenVINO asks the processor whether it has bf16")
@pytest.mark.usefixtures("openvino")
def test_the_precision_is_the_towers_and_a_copy_in_another_has_its_own() -> None:
    mini = backbones.create("mini")
    fast, images = backbones.with_engine(mini, "openvino"), pictures(64, 64)
    exact, half = fast.encode_image(images), fast.in_precision(torch.bfloat16)
    trace = half.trace(images, Needs(features=(-1,)))
    assert trace.features[-1].dtype == torch.bfloat16
    assert not torch.equal(trace.embedding, exact)
    assert F.cosine_similarity(trace.embedding, exact).min() > 0.99
    assert torch.equal(fast.encode_image(images), exact)


@pytest.mark.usefixtures("openvino")
def test_an_engine_is_set_once_and_taken_off_again() -> None:
    mini = backbones.create("mini")
    fast = backbones.with_engine(mini, "openvino")
    assert backbones.with_engine(fast, "openvino") is fast
    images = pictures(64, 64)
    plain = backbones.with_engine(fast, "torch")
    assert torch.equal(plain.encode_image(images), mini.encode_image(images))
    assert not torch.equal(fast.encode_image(images), mini.encode_image(images))


@pytest.mark.usefixtures("openvino")
def test_threads_that_share_a_tower_each_get_their_own_pictures() -> None:
    fast = backbones.with_engine(backbones.create("mini"), "openvino")
    images = [pictures(64, 64, n=2) * scale for scale in (0.5, 1.0, 2.0)]
    alone = [fast.encode_image(one) for one in images]
    with ThreadPoolExecutor(len(images)) as pool:
        together = list(pool.map(fast.encode_image, images * 10))
    assert all(torch.equal(found, expected) for found, expected in zip(together, alone * 10, strict=True))


@pytest.mark.usefixtures("openvino")
def test_boxes_of_pictures_computed_ahead_are_those_of_one_picture_at_a_time() -> None:
    photos = [CAT.with_name(f"{name}.jpg") for name in ("cat", "dogs", "bee", "fig", "drum")]
    localizer = Localizer(method="cam", device="cpu", image_size=96, batch_size=2, engine_backend="openvino")
    alone = [localizer(photo, ["cat", "dog"]) for photo in photos]
    for found, expected in zip(localizer.stream(photos, ["cat", "dog"]), alone, strict=True):
        assert abs(found.heatmaps - expected.heatmaps).max() <= 1e-3
        assert found.boxes.label.tolist() == expected.boxes.label.tolist()


@pytest.mark.filterwarnings("ignore")  # of torch's tracer
@pytest.mark.parametrize("hw", [(8, 8), (7, 8), (9, 7)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_what_an_engine_is_given_of_a_strided_convolution_is_the_same(hw: tuple[int, int], kernel: int) -> None:
    convolution = _StridedConv(2, 3, kernel, 2).requires_grad_(False)
    images = torch.randn(2, 2, *hw, generator=torch.Generator().manual_seed(0))
    traced = torch.jit.trace(convolution, images[:1])
    assert_rounded(traced(images), convolution(images), convolution)
    assert "aten::slice" not in str(traced.graph)  # which OpenVINO computes as a copy of its own


def test_engines_refuse_other_towers_and_precisions_in_one_line() -> None:
    with pytest.raises(UsageError, match="computes CNN towers, mini-vit is a VIT: use engine-backend torch"):
        Localizer("mini-vit", engine_backend="openvino")
    with pytest.raises(UsageError, match="on the CPU in fp32 or bf16, got a tower on cpu in float16: use"):
        Localizer(precision="fp16", device="cpu", engine_backend="openvino")
    mini = backbones.create("mini")
    mini.runner = OpenVino()  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="on the CPU in fp32 or bf16, got a tower on cpu in float16: use"):
        mini.in_precision(torch.float16)  # as masked_precision asks for
    with pytest.raises(UsageError, match="expected engine_backend to be one of torch, openvino, got 'onnx'"):
        Localizer(engine_backend="onnx")
