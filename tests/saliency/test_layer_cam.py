"""LayerCAM against its equations, one stage and fused, and against pytorch_grad_cam and torchcam."""

import math
from typing import Any

import pytest
import torch
from pytorch_grad_cam import LayerCAM
from torch.nn import functional as F
from torchcam.methods import LayerCAM as TorchcamLayerCAM

from tests.saliency.peers import CNNS, GRID, assert_packages_agree, assert_same_maps, every_scene, min_max, tiny_scene


def by_hand(scene: Any, stage: int) -> torch.Tensor:
    """Σ_c ReLU(∂s_t/∂A_c) ⊙ A_c, location by location: `[B, P, h, w]`."""
    return scene.expected(lambda a, g: sum(s.clamp(min=0) * c for s, c in zip(g, a, strict=True)), stage).float()


@pytest.mark.parametrize("stage", [-1, -2, -3])
@pytest.mark.parametrize("kind", CNNS)
def test_the_equation(kind: str, stage: int) -> None:
    """Also of an earlier stage, where gradients run through the stages after it."""
    scene = tiny_scene(kind)
    torch.testing.assert_close(scene.ours("layer_cam", stages=(stage,)), by_hand(scene, stage), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", CNNS)
def test_fused_stages(kind: str) -> None:
    """Eq. 9, tanh(2·M / max M), then the maximum on the finest grid; stage −3 is twice as fine as −2 and −1."""
    scene = tiny_scene(kind)
    fused = scene.ours("layer_cam", stages=(-1, -2, -3))
    single = {stage: by_hand(scene, stage).clamp(min=0) for stage in (-1, -2, -3)}
    assert fused.shape == (2, 3, GRID[0] * 2, GRID[1] * 2)
    expected = torch.zeros_like(fused)
    for b in range(2):
        for p in range(3):
            for stage in (-1, -2, -3):
                peak = float(single[stage][b, p].max())
                scaled = torch.tensor([math.tanh(2 * float(v) / peak) for v in single[stage][b, p].flatten()])
                scaled = scaled.view(1, 1, *single[stage].shape[-2:])
                resized = F.interpolate(scaled, size=fused.shape[-2:], mode="bilinear", align_corners=False)
                expected[b, p] = torch.maximum(expected[b, p], resized[0, 0])
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-5)


@every_scene
def test_the_packages_agree_on_one_stage(make: Any) -> None:
    assert_packages_agree(make(), "layer_cam", LayerCAM, TorchcamLayerCAM)


@pytest.mark.parametrize("stages", [(-1, -2, -3), (-3, -1)], ids=str)
@pytest.mark.parametrize("kind", CNNS)
def test_torchcam_fuses_alike_but_for_the_minimum(kind: str, stages: tuple[int, ...]) -> None:
    """It subtracts each map's minimum before the tanh; with that, ours is its map."""
    scene = tiny_scene(kind)
    theirs = scene.torchcam(TorchcamLayerCAM, stages)
    variant = torch.zeros_like(theirs)
    for stage in stages:
        scaled = torch.tanh(2 * min_max(by_hand(scene, stage).relu()))
        resized = F.interpolate(scaled, size=theirs.shape[-2:], mode="bilinear", align_corners=False)
        variant = torch.maximum(variant, resized)
    torch.testing.assert_close(variant, theirs, rtol=1e-4, atol=1e-4)
    ours = scene.ours("layer_cam", stages=stages)
    flat = [
        torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in zip(ours[0], theirs[0], strict=True)
    ]
    assert min(flat) > 0.9


@pytest.mark.parametrize("kind", CNNS)
def test_pytorch_grad_cam_takes_the_mean_of_stages(kind: str) -> None:
    scene = tiny_scene(kind)
    theirs = scene.grad_cam_package(LayerCAM, (-1, -3))
    each = [over_input_once(by_hand(scene, stage), scene.images) for stage in (-1, -3)]
    assert_same_maps(min_max(torch.stack(each).mean(0)), theirs)


def over_input_once(maps: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return F.interpolate(min_max(maps.relu()), size=images.shape[-2:], mode="bilinear", align_corners=False)
