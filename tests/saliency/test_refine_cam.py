"""RefineCAM against its equation, and against torchcam."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torchcam.methods import GradCAM, LayerCAM, RefineCAM

from cliploc.tower import Needs
from tests.saliency.peers import CNNS, assert_same_maps, every_scene, min_max, tiny_scene

BASES = {"grad_cam": GradCAM, "layer_cam": LayerCAM}


@pytest.mark.parametrize("kind", CNNS)
@pytest.mark.parametrize("base", ["grad_cam", "grad_cam_pp", "layer_cam"])
def test_the_equation(kind: str, base: str) -> None:
    """The product of the base's own maps, place by place; the first of three stages is twice as fine."""
    scene = tiny_scene(kind)
    fine = scene.context(Needs(features=(-3,))).trace.features[-3].shape[-2:]
    expected = torch.ones(len(scene.images), len(scene.text), *fine)
    for stage in (-1, -3):
        options = {"stages": (stage,)} if base == "layer_cam" else {"block": stage}
        for b, maps in enumerate(scene.ours(base, **options)):
            for p, one in enumerate(maps):
                positive = one.clamp(min=0)
                low, high = float(positive.min()), float(positive.max())
                scaled = (positive - low) / (high - low) if high > low else torch.zeros_like(positive)
                large = F.interpolate(scaled[None, None], size=fine, mode="bilinear", align_corners=False)
                expected[b, p] *= large[0, 0]
    assert expected.amax((-2, -1)).max() > 0
    torch.testing.assert_close(scene.ours("refine_cam", stages=(-1, -3), base=base), expected, rtol=1e-5, atol=1e-6)


@every_scene
@pytest.mark.parametrize("base", list(BASES))
def test_torchcam_agrees(make: Any, base: str) -> None:
    scene = make()
    theirs = scene.torchcam(RefineCAM, (-1, -2), base_method=BASES[base])
    assert_same_maps(min_max(scene.ours("refine_cam", base=base)), theirs, tolerance=1e-4)
