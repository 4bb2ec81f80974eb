"""COCO's run lengths against pycocotools, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from cliploc.errors import InputError
from cliploc.images import rle

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)  # arrays of hypothesis's own are mostly alike all over
MASKS = seeds.map(lambda rng: rng.random(rng.integers(1, 31, 2)) < rng.random())


@given(MASKS)
def test_codes_are_read_back_as_pycocotools_reads_them(mask):
    ours = rle.encode(mask)
    assert (rle.decode(ours) == mask).all()
    assert (coco.decode(ours) == mask).all()
    assert (rle.decode({"size": ours["size"], "counts": rle.uncompressed(ours["counts"]).tolist()}) == mask).all()


@given(st.lists(st.integers(0, 2**28), max_size=9))
def test_long_runs_survive_the_text(counts):
    assert rle.uncompressed(rle.compressed(np.array(counts, np.int64))).tolist() == counts


@given(MASKS)
def test_runs_are_those_of_a_plain_loop(mask):
    flat, expected, value = mask.ravel().tolist(), [0], False
    for pixel in flat:
        if pixel != value:
            expected.append(0)
            value = pixel
        expected[-1] += 1
    assert rle.runs(mask.ravel()).tolist() == expected
    assert rle.of_runs(rle.runs(mask.ravel())).tolist() == flat


@given(st.lists(MASKS, min_size=1, max_size=4), st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_masks_are_placed_united_and_bounded_in_runs_as_in_pixels(parts, at):
    """Parts of one picture, of which each has all the height, all the width, or less."""
    height, width = (at[i] // 2 + max(part.shape[i] for part in parts) for i in (0, 1))
    pictures, codes = [], []
    for part in parts:
        top, left = (min(at[i], side - part.shape[i]) for i, side in ((0, height), (1, width)))
        whole = np.zeros((height, width), bool)
        whole[top : top + part.shape[0], left : left + part.shape[1]] = part
        pictures.append(whole)
        codes.append(rle.placed(part, left, top, (height, width)))
        assert codes[-1].tolist() == rle.runs(whole.ravel(order="F")).tolist()
        rows, columns = np.nonzero(whole)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
        assert rle.bounds(codes[-1], height) == box
        found, *corner = rle.part_of(rle.encode(whole))
        assert (found == whole[box[1] : box[3], box[0] : box[2]]).all()
        assert corner == box[:2]
    assert rle.united(codes).tolist() == rle.runs(np.any(pictures, axis=0).ravel(order="F")).tolist()


def test_a_box_holds_a_run_over_two_columns_and_no_empty_run():
    part, left, top = rle.part_of({"size": [3, 4], "counts": [2, 2, 5, 0, 3]})
    assert (part.tolist(), left, top) == ([[False, True], [False, False], [True, False]], 0, 0)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ({"size": [2, 2], "counts": "2"}, r"add up to its 2 × 2 pixels, got 2"),
        ({"size": [2, 2], "counts": [5, -1]}, r"add up to its 2 × 2 pixels"),
        ({"size": [2, 2], "counts": [2**58] * 64 + [4]}, r"add up to its 2 × 2 pixels"),  # 4 in 64 bits
        ({"size": [2, 2], "counts": [2**70]}, "expected a mask as COCO's run lengths"),
        ({"size": [2, 2], "counts": "\x00"}, "expected a mask as COCO's run lengths"),
        ({"size": [2, 2], "counts": "P"}, "expected a mask as COCO's run lengths"),
        ({"size": [2, 2], "counts": "P" * 20 + "0"}, "expected a mask as COCO's run lengths"),
        ({"size": [2, 2], "counts": "p2"}, "expected a mask as COCO's run lengths"),  # the letter after the last
        ({"size": [-2, -2], "counts": "4"}, "add up to its -2 × -2 pixels"),
        ({"size": [2], "counts": "22"}, "expected a mask as COCO's run lengths"),
        ({"counts": "22"}, "expected a mask as COCO's run lengths"),
        ([1, 2], "expected a mask as COCO's run lengths"),
        ({"size": [2, 2], "counts": "é"}, "expected a mask as COCO's run lengths"),
    ],
)
def test_what_is_no_code_is_refused(code, words):
    with pytest.raises(InputError, match=words):
        rle.decode(code)
