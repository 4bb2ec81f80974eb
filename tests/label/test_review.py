"""What the editor shows of a picture; tests/web/test_review.py uses it in a browser."""

from pathlib import Path

import numpy as np
from PIL import Image

from cliploc.images.rle import encode
from cliploc.label.editor.page import ReviewPicture, polygons_of
from cliploc.runs.label_store import Correction, Saved

from .annotated import annotated


def test_a_box_of_a_draft_that_is_gone_counts_as_new(tmp_path: Path) -> None:
    drafts = annotated("a.png", tmp_path / "a.png", (40, 30), [[1, 2, 30, 20]])
    box = ReviewPicture(drafts, frozenset(), Correction([[1, 2, 25, 20]], [1], None, [9]), Saved("reviewed", 1))
    assert box.entry()["found"] == [[1, 1.0, 0.36, True]]


def test_outlines_of_masks_are_in_the_pictures_pixels(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (960, 600)).save(path)  # twice what the page shows
    mask = np.zeros((600, 960), bool)
    mask[100:300, 200:600] = True
    picture = annotated("a.png", path, (960, 600), [[200, 100, 600, 300]], masks=(encode(mask),))
    visible = ReviewPicture(
        picture, frozenset(), Correction([[200, 100, 600, 300]], [0], [encode(mask)["counts"]], [0]), Saved()
    )
    for kind in ("drafts", "boxes"):
        assert visible.state()[kind][0]["polygons"] == [[[200, 100, 200, 300, 600, 300, 600, 100]]]


def test_every_mask_that_is_not_empty_has_a_polygon_to_edit():
    """A box without any is saved with an empty list once it is moved, which nothing takes."""
    mask = np.zeros((40, 600), bool)
    mask[3, 3] = True
    assert polygons_of(encode(mask)["counts"], (600, 40)) == [[[3, 3, 3, 4, 4, 4, 4, 3]]]
    mask[20:22, 10:590] = True  # the largest piece, too thin to be simplified
    thin = [[10, 20, 10, 22, 590, 22, 590, 20]]
    assert polygons_of(encode(mask)["counts"], (600, 40)) == [thin]
    mask[25:39, 100:400] = True
    mask[28:34, 150:200] = False
    (outline, hole), *rest = polygons_of(encode(mask)["counts"], (600, 40))
    assert (outline[:2], len(hole), rest) == ([100, 25], 8, [])


def test_the_box_of_an_empty_mask_is_edited_as_a_box():
    empty = encode(np.zeros((30, 40), bool))
    picture = annotated("a.png", Path("a.png"), (40, 30), [[1, 2, 30, 20]], masks=(empty,))
    state = ReviewPicture(
        picture, frozenset(), Correction([[1, 2, 30, 20]], [0], [empty["counts"]], [0]), Saved()
    ).state()
    for kind in ("drafts", "boxes"):
        assert (state[kind][0]["mask"], "polygons" in state[kind][0]) == (empty["counts"], False)
