"""Boxes: clipped into the picture, named where something is wrong, turned with the picture."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cliploc.evaluate.data import open_dataset
from cliploc.evaluate.data._samples import clipped, turned, turned_wh
from tests.evaluate.data import folders

SIDES = st.integers(1, 3000)
NUMBERS = st.one_of(st.floats(-5000, 5000), st.integers(-5000, 5000).map(float), st.just(math.nan), st.just(math.inf))


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), st.tuples(SIDES, SIDES))
def test_clipped_boxes_lie_in_the_picture_and_others_are_named(box, size_wh):
    width, height = size_wh
    inside, problem = clipped(box, size_wh)
    if inside is None:
        x0, y0, x1, y1 = box
        beside = x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height
        is_box = all(map(math.isfinite, box)) and x0 <= x1 and y0 <= y1
        assert problem is not None
        assert problem[0] == ("box outside" if is_box and beside else "broken box")
        assert problem[1].endswith("left out")
        return
    x0, y0, x1, y1 = np.array(inside, np.float32)  # as it will be stored
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    # The intersection with the picture, and nothing but it, to float32.
    expected = (max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height))
    assert inside == pytest.approx(expected, rel=1e-6, abs=1e-30)
    inside_before = box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
    assert (problem is None) == inside_before
    if not inside_before:
        assert problem is not None
        assert problem[0] == "box outside"
        assert problem[1].endswith("clipped")


@given(st.integers(1, 8), st.tuples(st.integers(4, 30), st.integers(4, 30)), st.data())
def test_a_box_turns_as_pillow_turns_the_picture(orientation, size_wh, data):
    width, height = size_wh
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    stored = np.zeros((height, width), np.uint8)
    stored[y0:y1, x0:x1] = 255
    picture = Image.fromarray(stored)
    picture.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(picture)
    assert turned_wh(size_wh, orientation) == upright.size
    assert turned((x0, y0, x1, y1), size_wh, orientation) == upright.getbbox()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_a_stored_picture_follow_its_exif_orientation(orientation, tmp_path):
    root = folders.ilsvrc(tmp_path)
    path = folders.picture(root / "val/ILSVRC2012_val_00000001.JPEG", (500, 375), orientation)
    sample = open_dataset("ilsvrc", root).samples[0]
    assert sample.path == path
    with Image.open(path) as picture:
        assert sample.size_wh == ImageOps.exif_transpose(picture).size
    assert sample.boxes_xyxy[0].tolist() == list(turned((111, 108, 441, 193), (500, 375), orientation))
    assert [kind for kind, _ in folders.named("ilsvrc", root)] == (["turned picture"] if orientation > 1 else [])


def test_a_picture_annotated_as_displayed_is_not_turned(tmp_path):
    root = folders.ilsvrc(tmp_path)
    folders.picture(root / "val/ILSVRC2012_val_00000001.JPEG", (375, 500), orientation=6)  # shown as 500×375
    dataset = open_dataset("ilsvrc", root)
    assert dataset.samples[0].boxes_xyxy[0].tolist() == [111, 108, 441, 193]
    assert not dataset.problems


def test_masks_do_not_turn(tmp_path):
    root = folders.openimages30k(tmp_path)
    folders.picture(root / "OpenImages/test/0bt_c3/0a51958f.jpg", orientation=3)
    assert folders.named("openimages30k", root) == [("turned picture", "test/0bt_c3/0a51958f.jpg")]
    assert len(open_dataset("openimages30k", root)) == 1
