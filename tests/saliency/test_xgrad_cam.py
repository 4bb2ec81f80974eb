"""XGrad-CAM against its equation, and against pytorch_grad_cam and torchcam."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_grad_cam import XGradCAM
from torchcam.methods import XGradCAM as TorchcamXGradCAM

from cliploc.saliency import methods
from tests.saliency.peers import CNNS, GRID, assert_same_maps, min_max, mini_scene, over_input, tiny_scene


@pytest.mark.parametrize("kind", CNNS)
def test_the_equation(kind: str) -> None:
    scene = tiny_scene(kind)
    features, gradients = (tensor.double() for tensor in scene.features_and_gradients())
    maps = scene.ours("xgrad_cam")
    for b in range(len(features)):
        for p in range(len(scene.text)):
            expected = torch.zeros(GRID, dtype=torch.float64)
            for c, activation in enumerate(features[b]):
                total = float(activation.sum())
                if total == 0:
                    continue
                weight = 0.0
                for y in range(GRID[0]):
                    for x in range(GRID[1]):
                        weight += float(activation[y, x]) / total * float(gradients[p, b, c, y, x])
                expected += weight * activation
            torch.testing.assert_close(maps[b, p].double(), expected, rtol=1e-4, atol=1e-7)


def test_on_a_gap_tower_it_is_grad_cam() -> None:
    scene = tiny_scene("gap_cnn")
    torch.testing.assert_close(scene.ours("xgrad_cam"), scene.ours("grad_cam"), rtol=1e-4, atol=1e-6)


def test_a_channel_that_sums_to_zero_weighs_nothing() -> None:
    """Activations of +1 and −1 only: no division by their sum, and the other channels as before."""
    scene = tiny_scene("attention_pool_cnn")
    ctx = scene.context()
    ctx.features[:, 4] = 0
    expected = methods.get("xgrad_cam").function(ctx)
    ctx.features[:, 4].view(2, -1)[:, ::2] = 1e-9
    ctx.features[:, 4].view(2, -1)[:, 1::2] = -1e-9
    torch.testing.assert_close(methods.get("xgrad_cam").function(ctx), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [*(lambda kind=kind: tiny_scene(kind) for kind in CNNS), mini_scene])
def test_the_packages_agree(make: Any) -> None:
    scene = make()
    maps = scene.ours("xgrad_cam")
    assert_same_maps(over_input(maps, scene.images), scene.grad_cam_package(XGradCAM), tolerance=1e-4)
    assert_same_maps(min_max(maps.relu()), scene.torchcam(TorchcamXGradCAM), tolerance=1e-4)
