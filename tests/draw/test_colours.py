"""The colours of names: far apart, also for the colour-blind, and spread over names that are seen together."""

import colorsys
import itertools

import numpy as np
import pytest

from cliploc.draw.colours import INK, NAME_COLOURS, PAPER, text_colour
from cliploc.evaluate.tasks.segmentation.page import class_colours

# Oklab (Ottosson 2020), and full protanopia and deuteranopia in linear RGB (Machado, Oliveira & Fernandes 2009).
TO_CONES = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
TO_LAB = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9690]],
}


def lab(colours: object, sight: str) -> np.ndarray:
    srgb = np.asarray(colours) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.transpose(SIGHT[sight])).clip(0, 1)
    return np.cbrt(seen @ np.transpose(TO_CONES)) @ np.transpose(TO_LAB)


@pytest.mark.parametrize(("sight", "least"), [("normal", 0.19), ("protanopia", 0.11), ("deuteranopia", 0.11)])
def test_no_two_colours_look_alike(sight: str, least: float) -> None:
    places = lab(NAME_COLOURS, sight)
    closest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2))
    assert closest >= least


def test_at_most_one_is_a_red() -> None:
    hues = [360 * colorsys.rgb_to_hsv(*(part / 255 for part in colour))[0] for colour in NAME_COLOURS]
    assert sum(hue < 20 or hue > 340 for hue in hues) <= 1


def test_colours_can_be_seen_on_black_and_on_white() -> None:
    for colour in NAME_COLOURS:
        assert min(np.linalg.norm(lab(colour, "normal") - lab(ground, "normal")) for ground in (INK, PAPER)) > 0.15


def test_text_on_every_colour_can_be_read() -> None:
    for colour in NAME_COLOURS:
        light = [lab(one, "normal")[0] for one in (colour, text_colour(colour))]
        assert abs(light[0] - light[1]) > 0.35


@pytest.mark.parametrize("count", [21, 150, 847])
def test_each_class_has_its_own_colour_and_the_background_is_black(count: int) -> None:
    names = [f"class {number}" for number in range(count)]
    colours = class_colours(names)[:count]
    assert len(np.unique(colours, axis=0)) == count
    assert colours.any(axis=1).all()
    assert class_colours(["background", *names])[:2].tolist() == [[0, 0, 0], [128, 0, 0]]
