"""XGrad-CAM against its equation, and against pytorch_grad_cam and torchcam."""

from typing import Any

import pytest
import torch
from pytorch_grad_cam import XGradCAM
from torchcam.methods import XGradCAM as TorchcamXGradCAM

from cliploc.saliency import methods
from tests.saliency.peers import CNNS, GRID, assert_packages_agree, every_scene, tiny_scene


@pytest.mark.parametrize("kind", CNNS)
def test_the_equation(kind: str) -> None:
    def by_hand(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        expected = torch.zeros(GRID, dtype=torch.float64)
        for activation, slopes in zip(features, gradients, strict=True):
            if total := float(activation.sum()):
                pairs = zip(activation.flatten().tolist(), slopes.flatten().tolist(), strict=True)
                expected += sum(value / total * slope for value, slope in pairs) * activation
        return expected

    scene = tiny_scene(kind)
    torch.testing.assert_close(scene.ours("xgrad_cam").double(), scene.expected(by_hand), rtol=1e-4, atol=1e-7)


def test_a_channel_that_sums_to_zero_weighs_nothing() -> None:
    """Activations of +1 and −1 only: no division by their sum, and the other channels as before."""
    scene = tiny_scene("attention_pool_cnn")
    ctx = scene.context()
    ctx.features[:, 4] = 0
    expected = methods.get("xgrad_cam").function(ctx)
    ctx.features[:, 4].view(2, -1)[:, ::2] = 1e-9
    ctx.features[:, 4].view(2, -1)[:, 1::2] = -1e-9
    torch.testing.assert_close(methods.get("xgrad_cam").function(ctx), expected, rtol=1e-4, atol=1e-6)


@every_scene
def test_the_packages_agree(make: Any) -> None:
    assert_packages_agree(make(), "xgrad_cam", XGradCAM, TorchcamXGradCAM)
