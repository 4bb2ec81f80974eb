"""The box in the middle: its size as documented, on any picture, and nothing that follows changes it."""

import numpy as np
import pytest
import torch

from cliploc.boxes import BoxRule
from cliploc.localizer import Localizer
from cliploc.saliency import methods
from tests.tiny import context, planted_image, tower

GRID = (5, 6)


def test_it_is_half_of_the_input() -> None:
    method, backbone = methods.get("centre_box"), tower("gap_cnn", (25, 50))
    ctx = context(backbone, planted_image("red", (25, 50), (1, 2)), ["red", "blue"], method.needs())
    heat = method.function(ctx)[0, 0]  # [100, 200]
    assert set(heat.unique().tolist()) == {0.0, 1.0}
    assert float(heat.mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.equal(heat, heat.flip(-1))
    assert torch.equal(heat, heat.flip(-2))


def test_its_box_has_the_pictures_shape_at_any_threshold() -> None:
    localizer = Localizer(tower("vit", GRID), method="centre_box", min_presence=0, resize="squash", image_size=64)
    found = localizer(np.zeros((300, 600, 3), np.uint8), ["cat"])
    [(x0, y0, x1, y1)] = found.boxes.xyxy.tolist()
    assert ((x1 - x0) / 600, (y1 - y0) / 300) == pytest.approx((0.707, 0.707), abs=2 / 64)
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((300, 150), abs=0.01)
    assert found.boxes_by(BoxRule(0.9)).xyxy.tolist() == found.boxes.xyxy.tolist()


@pytest.mark.parametrize("step", ["affinity", "guided"])
def test_no_refinement_lets_it_follow_the_picture(step: str) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    backbone = tower("gap_cnn", GRID)
    asked = {"method": "centre_box", "min_presence": 0}
    plain = Localizer(backbone, **asked)
    refined = Localizer(backbone, **asked, refine=[step])
    assert np.array_equal(plain(picture, ["red"]).maps, refined(picture, ["red"]).maps)
    assert refined.box_rule == plain.box_rule
    assert refined.describe() == plain.describe()
