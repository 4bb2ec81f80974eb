"""Other engines compute what torch computes, and refuse what they cannot compute."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc import Localizer, backbones
from cliploc.backbones._cnn import OpenVino
from cliploc.backbones.mini import _StridedConv
from cliploc.errors import UsageError
from cliploc.tower import Needs
from tests.backbones.seam import pictures
from tests.backbones.small_clip import small_clip, tokenizer
from tests.commands import CAT
from tests.tolerances import assert_rounded


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
    plain, fast = (
        Localizer(method=method, method_options=options, device="cpu", image_size=96, engine_backend=engine)(
            CAT, ["cat"]
        )
        for engine in ("torch", "openvino")
    )
    assert abs(plain.heatmaps - fast.heatmaps).max() <= 1e-3
    assert len(plain.boxes) == len(fast.boxes)


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


def test_other_towers_and_precisions_are_refused_in_one_line() -> None:
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
