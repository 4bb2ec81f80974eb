"""The page to review boxes with, as text; tests/web/test_review.py uses it in a browser."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cliploc.images.rle import encode
from cliploc.label.editor.page import ReviewPicture, polygons_of, write_review
from cliploc.runs.label_store import Correction, Saved
from tests.draw.test_page import CLOSING, EVIL, IMAGE, Reader

from .annotated import annotated

COMMENT = "<!-- <script> ]]>"


class Scripts(Reader):
    """Also what stands within each script; the first is the data, as JSON."""

    def __init__(self, page: str) -> None:
        self.scripts: list[str] = []
        super().__init__(page)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        super().handle_data(data)


def make_page(folder: Path, evil: str, gone: int = 0) -> Scripts:
    folder.mkdir(exist_ok=True)
    pictures = []
    for number in range(3):
        path = folder / f"{number}.png"
        if number >= gone:
            Image.new("RGB", (40, 30), (90, 80, 70)).save(path)
        else:
            path.unlink(missing_ok=True)
        facts = {"groups": (True, False), "box_ids": (2, 4)}  # 0, 1 and 3 are not shown
        boxes = [[1, 2, 30, 20.004], [3, 3, 9, 9]]
        drafts = annotated(f"{evil}{number}.png", path, (40, 30), boxes, number=number + 1, **facts)
        pictures.append(
            ReviewPicture(drafts, frozenset({4}), Correction([[1, 2, 25, 20]], [1], None, [2]), Saved("unsure", 3))
        )
    write_review(folder / "review.html", pictures, [evil, "dog"], evil, total=5000)
    return Scripts((folder / "review.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("evil", [EVIL, IMAGE, CLOSING, COMMENT])
def test_names_stay_text_and_come_back_as_they_were(tmp_path: Path, evil: str) -> None:
    reader = make_page(tmp_path, evil)
    assert not reader.open
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("script") == len(reader.scripts) == 3  # data, Annotorious, the editor
    assert {"img", "svg"}.isdisjoint(tags), "pictures are made by the script"
    assert "noscript" in tags, "without scripts the page says what it needs"
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    data: dict[str, Any] = json.loads(reader.scripts[0])
    assert [data["run"], *data["names"]] == [evil, evil, "dog"]
    assert [one["name"] for one in data["pictures"]] == [f"{evil}{number}.png" for number in range(3)]
    first = data["pictures"][0]
    same = {"label": 0, "score": 0.5, "certainty": 1}
    assert first["drafts"] == [
        {"xyxy": [1, 2, 30, 20], "draft": 2, "group": True, "unsure": False, **same},
        {"xyxy": [3, 3, 9, 9], "draft": 4, "group": False, "unsure": True, **same},
    ]
    assert first["boxes"] == [{"xyxy": [1, 2, 25, 20], "label": 1, "draft": 2}]
    assert (first["status"], first["revision"], first["found"]) == ("unsure", 3, [[1, 0.5, 0.36, True]])
    assert first["unsure"] == 1
    assert "<" not in reader.scripts[0]
    assert "3 pictures of 5,000" in reader.text


def test_a_box_of_a_draft_that_is_gone_counts_as_new(tmp_path: Path) -> None:
    drafts = annotated("a.png", tmp_path / "a.png", (40, 30), [[1, 2, 30, 20]])
    box = ReviewPicture(drafts, frozenset(), Correction([[1, 2, 25, 20]], [1], None, [9]), Saved("reviewed", 1))
    assert box.entry()["found"] == [[1, 1.0, 0.36, True]]


def test_pictures_that_have_gone_are_left_out(tmp_path: Path) -> None:
    for gone in (1, 3):
        data = json.loads(make_page(tmp_path, "a", gone).scripts[0])
        assert len(data["pictures"]) == 3 - gone


def test_it_is_self_contained_and_the_same_each_time(tmp_path: Path) -> None:
    first = make_page(tmp_path, "a")
    page = (tmp_path / "review.html").read_bytes()
    make_page(tmp_path, "a")
    assert (tmp_path / "review.html").read_bytes() == page
    assert {tag for tag, _ in first.tags}.isdisjoint({"link", "iframe", "object"})
    assert not any(name in ("src", "href") for _, attributes in first.tags for name in attributes)


def test_outlines_of_masks_are_in_the_pictures_pixels(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (960, 600)).save(path)  # twice what the page shows
    mask = np.zeros((600, 960), bool)
    mask[100:300, 200:600] = True
    picture = annotated("a.png", path, (960, 600), [[200, 100, 600, 300]], masks=(encode(mask),))
    visible = ReviewPicture(
        picture, frozenset(), Correction([[200, 100, 600, 300]], [0], [encode(mask)["counts"]], [0]), Saved()
    )
    write_review(tmp_path / "review.html", [visible], ["cat"], "run", total=1, masks=True)
    data = json.loads(Scripts((tmp_path / "review.html").read_text(encoding="utf-8")).scripts[0])
    for kind in ("drafts", "boxes"):
        assert data["pictures"][0][kind][0]["polygons"] == [[[200, 100, 200, 300, 600, 300, 600, 100]]]


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
