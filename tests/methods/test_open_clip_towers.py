"""CLIP's RN50: the public packages agree on open_clip's own model."""

import copy
from typing import Any

import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
from torch import Tensor

from cliploc.towers._open_clip_towers import OpenClipResNet
from tests.methods.peers import Scene, WrappedClip, assert_same_maps, min_max, over_input
from tests.methods.towers import clip_model
from tests.methods.vits import photograph
from tests.towers.seam import tokenizer

NAMES = ["a photo of a cat", "tree trunk"]  # with random weights, two that a map is not flat for


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
