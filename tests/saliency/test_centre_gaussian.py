"""The Gaussian in the middle: the formula, pixel by pixel, and that every box of it is one box size."""

import math

import numpy as np
import pytest

from cliploc.localizer import Localizer
from cliploc.saliency import methods
from tests.tiny import context, planted_image, tower


def test_it_is_the_formula() -> None:
    method, backbone = methods.get("centre_gaussian"), tower("attention_pool_cnn", (5, 6))
    ctx = context(backbone, planted_image("red", (5, 6), (1, 2)), ["red"], method.needs())
    heat = method.function(ctx)[0, 0]  # [20, 24]
    for y, x in [(0, 0), (9, 11), (10, 12), (19, 5)]:
        dy, dx = (y + 0.5) / 20 - 0.5, (x + 0.5) / 24 - 0.5
        assert float(heat[y, x]) == pytest.approx(math.exp(-(dx**2 + dy**2) / (2 * 0.25**2)), abs=1e-6)


def test_its_box_is_centred_and_has_the_pictures_shape() -> None:
    localizer = Localizer(
        tower("gap_cnn", (5, 6)), method="centre_gaussian", min_presence=0, resize="squash", image_size=256
    )
    found = localizer(np.zeros((200, 500, 3), np.uint8), ["cat"])
    [(x0, y0, x1, y1)] = found.boxes.xyxy.tolist()
    assert (x1 - x0) / 500 == pytest.approx((y1 - y0) / 200, abs=0.01)
    low = math.exp(-4)  # in the corners, which min-max takes to 0
    cut = low + localizer.box_rule.threshold * (1 - low)
    assert (x1 - x0) / 500 == pytest.approx(2 * 0.25 * math.sqrt(-2 * math.log(cut)), abs=0.01)
    assert (x0 + x1, y0 + y1) == pytest.approx((500, 200), abs=0.01)
