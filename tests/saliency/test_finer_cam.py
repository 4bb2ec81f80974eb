"""Finer-CAM against its equation on all tower kinds, and against torchcam."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchcam.methods import FinerCAM, GradCAM

from tests.saliency.peers import CNNS, Scene, assert_same_maps, every_scene, min_max, tiny_scene

TEXTS = ("red", "green", "a zebra", "blue")


@pytest.mark.parametrize("kind", CNNS)
@pytest.mark.parametrize(("gamma", "references"), [(0.6, 3), (0.6, 1), (1.5, 2), (0.0, 2)])
def test_the_equation(kind: str, gamma: float, references: int) -> None:
    """The gradient of the difference, one prompt at a time, with references picked by hand."""
    scene = tiny_scene(kind)
    scene = Scene(scene.backbone, scene.images, scene.backbone.encode_text(TEXTS))
    features, gradients = scene.features_and_gradients()  # [B, C, h, w], [P, B, C, h, w]
    scores = scene.backbone.encode_image(scene.images) @ scene.text.T
    maps = scene.ours("finer_cam", gamma=gamma, references=references)
    for b in range(len(features)):
        for p in range(len(TEXTS)):
            others = sorted((q for q in range(len(TEXTS)) if q != p), key=lambda q: abs(scores[b, q] - scores[b, p]))
            gradient = gradients[p, b]
            for q in others[:references]:
                gradient = gradient - gamma / references * gradients[q, b]
            expected = sum(gradient[c].mean() * features[b, c] for c in range(len(gradient)))
            torch.testing.assert_close(maps[b, p], expected, rtol=1e-4, atol=1e-6)


@every_scene
def test_torchcam_agrees(make: Any) -> None:
    scene = make()
    theirs = scene.torchcam(FinerCAM, base_method=GradCAM)
    assert_same_maps(min_max(scene.ours("finer_cam").relu()), theirs, tolerance=1e-4)


def test_a_name_alone_is_told_from_the_empty_name() -> None:
    scene = tiny_scene("gap_cnn")
    pair = Scene(scene.backbone, scene.images, scene.backbone.encode_text(["red", ""]))
    alone = Scene(scene.backbone, scene.images, pair.text[:1])
    torch.testing.assert_close(alone.ours("finer_cam")[:, 0], pair.ours("finer_cam")[:, 0])
    difference: Tensor = alone.ours("finer_cam") - alone.ours("grad_cam")
    assert difference.abs().max() > 1e-3
