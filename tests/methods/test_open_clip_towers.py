"""CLIP's RN50: the public packages agree on open_clip's own model, and half precision gives the same maps."""

import copy
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
from torch import Tensor

from cliploc.errors import ModelError
from cliploc.find.running import best_device
from cliploc.localizer import Localizer
from cliploc.methods import methods
from cliploc.towers.open_clip_resnet import OpenClipResNet
from tests.commands import CAT
from tests.methods.peers import Scene, WrappedClip, assert_same_maps, min_max, over_input
from tests.methods.towers import CUT_RESNET, clip_model, copy_of
from tests.methods.vits import photograph
from tests.towers.seam import tokenizer

NAMES = ["a photo of a cat", "tree trunk"]  # with random weights, two that a map is not flat for
# Two multiply rounding, on random weights most: Finer-CAM reads differences of nearly equal scores, RefineCAM is a
# product of maps. In bfloat16 RefineCAM's correlation is 0.954.
FAST = tuple(
    method.name
    for method in methods
    if "cnn" in method.towers
    and method.family != "perturbation"
    # The last two run the whole tower on many pictures.
    and method.name not in ("finer_cam", "refine_cam", "integrated_gradients", "smooth_grad")
)


class ClipScene(Scene):
    """For us the adapter's view, for the peers open_clip's model as it is, wrapped as their users wrap it."""

    def __init__(self, model: Any, backbone: OpenClipResNet, images: Tensor, scale: float) -> None:
        super().__init__(backbone, images, backbone.encode_text(NAMES), scale)
        self.model = WrappedClip(copy.deepcopy(model.visual), self.text, scale).eval().requires_grad_(False)
        self.model.visual.layer4.requires_grad_(True)  # no graph before the last stage: time and memory only

    def layers(self, stages: tuple[int, ...]) -> list[torch.nn.Module]:
        assert stages == (-1,)
        return [self.model.visual.layer4[-1]]


@pytest.fixture(scope="module")
def rn50() -> tuple[Any, OpenClipResNet, Tensor]:
    """open_clip's model, our view of it, a photograph `[1, 3, 224, 224]`."""
    model = clip_model("RN50")
    backbone = OpenClipResNet(model, tokenizer, "RN50")
    return model, backbone, backbone.normalize(photograph("cat", 224, 224))


@pytest.mark.parametrize(
    ("name", "theirs", "torchcams"),
    [
        ("grad_cam", pytorch_grad_cam.GradCAM, torchcam.methods.GradCAM),
        ("xgrad_cam", pytorch_grad_cam.XGradCAM, torchcam.methods.XGradCAM),
        ("layer_cam", pytorch_grad_cam.LayerCAM, torchcam.methods.LayerCAM),
    ],
)
def test_the_packages_agree(rn50: Any, name: str, theirs: Any, torchcams: Any) -> None:
    """CAM has no peer: an attention pool has no linear layer for one to read; `test_cam` has its equation."""
    scene = ClipScene(*rn50, scale=100.0)
    maps = scene.ours(name)
    assert (maps.relu().amax((-2, -1)) > 0).all(), "a flat map compares nothing"
    assert_same_maps(over_input(maps, scene.images), scene.grad_cam_package(theirs))
    assert_same_maps(min_max(maps.relu()), scene.torchcam(torchcams))


def test_pytorch_grad_cam_agrees_on_grad_cam_pp(rn50: Any) -> None:
    """At a scale where its 1e-6 in the denominator does not show; torchcam's leaves the division out altogether."""
    scene = ClipScene(*rn50, scale=1e6)
    maps = scene.ours("grad_cam_pp", temperature=1e-6)
    assert_same_maps(over_input(maps, scene.images), scene.grad_cam_package(pytorch_grad_cam.GradCAMPlusPlus))


def heatmaps(backbone: Any) -> Tensor:
    """Every method's maps of one photograph `[M, P, H, W]`, on a grid of 3×5."""
    localizer = Localizer(backbone, image_size=(96, 160), resize="squash", templates="{}")
    (found,) = localizer.compare([str(CAT)], NAMES, FAST)
    maps = np.stack([found[name].heatmaps for name in FAST])
    assert maps.dtype == np.float32
    return torch.from_numpy(maps)


@pytest.fixture(scope="module")
def expected(rn50: Any) -> Tensor:
    maps = heatmaps(rn50[1])
    assert (maps.amax((-2, -1)) > 0.9).all(), "a flat map compares nothing"
    return maps


@pytest.mark.parametrize(
    ("dtype", "bound", "correlation"),
    [(torch.bfloat16, 0.2, 0.98), (torch.float16, 0.05, 0.998)],  # seen: 0.12 and 0.990; 0.03 and 0.999
    ids=["bfloat16", "float16"],
)
def test_half_precision_gives_nearly_the_same_heatmaps(
    rn50: Any, expected: Tensor, dtype: torch.dtype, bound: float, correlation: float
) -> None:
    maps = heatmaps(copy_of(rn50[1], dtype))
    assert (maps - expected).abs().max() <= bound
    for ours, full in zip(maps.flatten(0, 1), expected.flatten(0, 1), strict=True):
        assert torch.corrcoef(torch.stack([ours.flatten(), full.flatten()]))[0, 1] >= correlation


def test_a_tower_that_leaves_the_range_of_half_precision_is_named() -> None:
    """Fine in float32; in float16 the first convolution overflows."""
    backbone = copy_of(CUT_RESNET)
    backbone.stages[0].conv1.weight.mul_(1e6)
    backbone.stages[0].conv2.weight.div_(1e6)
    heatmaps(backbone)
    with pytest.raises(ModelError, match=r"cut RN50 in float16 gave an embedding that is not a number for .*cat"):
        heatmaps(backbone.half())


@pytest.mark.gpu
@pytest.mark.skipif(best_device() == "cpu", reason="no CUDA or MPS device")
def test_a_gpu_gives_the_cpus_heatmaps(rn50: Any, expected: Tensor) -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # ten bits of mantissa are no comparison
        torch.testing.assert_close(heatmaps(copy_of(rn50[1]).to(best_device())), expected, rtol=0, atol=1e-3)
