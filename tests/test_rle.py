"""COCO's run lengths against pycocotools, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from cliploc import rle
from cliploc.errors import InputError

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30))


@given(MASKS)
def test_codes_are_those_of_pycocotools(mask):
    ours, theirs = rle.encode(mask), coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert ours == {"size": list(mask.shape), "counts": theirs["counts"].decode()}
    assert (rle.decode(ours) == mask).all()
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
        ({"size": [2], "counts": "22"}, "expected a mask as COCO's run lengths"),
        ({"counts": "22"}, "expected a mask as COCO's run lengths"),
        ([1, 2], "expected a mask as COCO's run lengths"),
        ({"size": [2, 2], "counts": "é"}, "expected a mask as COCO's run lengths"),
    ],
)
def test_what_is_no_code_is_refused(code, words):
    with pytest.raises(InputError, match=words):
        rle.decode(code)
