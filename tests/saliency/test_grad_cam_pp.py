"""Grad-CAM++ against its equation, and against pytorch_grad_cam and torchcam."""

from typing import Any

import pytest
import torch
from pytorch_grad_cam import GradCAMPlusPlus
from torchcam.methods import GradCAMpp

from cliploc.saliency import methods
from tests.saliency.peers import CNNS, GRID, assert_same_maps, min_max, mini_scene, over_input, tiny_scene


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("kind", CNNS)
def test_the_equation(kind: str, temperature: float | None) -> None:
    """Eq. 19 as it stands, in float64, with ∂S of the logit."""
    scene = tiny_scene(kind)
    scale = scene.backbone.logit_scale if temperature is None else 1 / temperature

    def by_hand(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        expected = torch.zeros(GRID, dtype=torch.float64)
        for activation, slopes in zip(features, gradients, strict=True):
            total = float(activation.sum())
            rising = [slope for slope in (scale * slopes).flatten().tolist() if slope > 0]
            expected += sum(s * s**2 / (2 * s**2 + total * s**3) for s in rising) * activation
        return expected

    maps = scene.ours("grad_cam_pp", temperature=temperature).double()
    torch.testing.assert_close(maps, scene.expected(by_hand), rtol=1e-4, atol=1e-6)


def test_negative_sums_of_activations_stay_finite() -> None:
    """A channel whose sum is negative could make 2 + ΣA·∂S zero: the paper assumes A ≥ 0."""
    scene = tiny_scene("gap_cnn")
    ctx = scene.context()
    _, gradients = scene.features_and_gradients()
    steepest = float(gradients[0].max()) * scene.backbone.logit_scale
    channel = int(gradients[0, 0].mean((-2, -1)).argmax())
    ctx.features[0, channel] = -2 / steepest / (GRID[0] * GRID[1])
    maps = methods.get("grad_cam_pp").function(ctx)
    assert maps.isfinite().all()
    assert maps.abs().max() < 1e3


@pytest.mark.parametrize("make", [*(lambda kind=kind: tiny_scene(kind, scale=1e4) for kind in CNNS), None])
def test_pytorch_grad_cam_agrees(make: Any) -> None:
    """At a high logit scale, where its 1e-6 in the denominator does not show."""
    scene = make() if make else mini_scene(scale=1e4)
    maps = scene.ours("grad_cam_pp", temperature=1e-4)
    assert_same_maps(over_input(maps, scene.images), scene.grad_cam_package(GradCAMPlusPlus))


@pytest.mark.parametrize("kind", CNNS)
def test_torchcam_keeps_no_division(kind: str) -> None:
    """Its weights are Σ ∂S²·ReLU(∂S): stated in our docstring, held here so that a change of torchcam shows."""
    scene = tiny_scene(kind)
    features, gradients = scene.features_and_gradients()
    slopes = scene.scale * gradients.transpose(0, 1)  # [B, P, C, h, w]
    weights = (slopes**2 * slopes.relu()).sum((-2, -1))  # [B, P, C]
    variant = torch.einsum("bpc,bchw->bphw", weights, features)
    assert_same_maps(min_max(variant.relu()), scene.torchcam(GradCAMpp), tolerance=1e-4)
