"""YOLO's layout: where pictures are, boxes and polygons, and what is wrong in a text."""

from pathlib import Path

import pytest

from cliploc.errors import UsageError
from cliploc.evaluate.data import open_dataset
from tests.evaluate.data.folders import boxes, lines, named, picture


def build(root: Path) -> Path:
    """Two pictures in two splits; the first has two classes, one of them outlined."""
    lines(root / "data.yaml", ["path: .", "names:", "  3: traffic light", "  0: cat", "  1: ''"])
    lines(root / "labels/train/a.txt", ["0 0.5 0.5 0.4 0.5", "3 0.1 0.1 0.3 0.1 0.2 0.4"])
    lines(root / "valid/labels/b.txt", ["3 0.25 0.5 0.5 1"])
    picture(root / "images/train/a.jpg")
    picture(root / "valid/images/b.png", (60, 20))
    return root


def test_boxes_polygons_and_splits(tmp_path):
    root = build(tmp_path)
    found = boxes(open_dataset("yolo", root))
    assert found == {
        "images/train/a.jpg/0": [pytest.approx([15, 10, 35, 30])],
        "images/train/a.jpg/1": [pytest.approx([5, 4, 15, 16])],
        "valid/images/b.png/1": [pytest.approx([0, 0, 30, 20])],
    }
    assert [one.name for one in open_dataset("yolo", root).classes] == ["cat", "traffic light"]
    assert list(boxes(open_dataset("yolo", root, "val"))) == ["valid/images/b.png/1"]
    assert len(open_dataset("yolo", root, "train")) == 2


def test_labels_may_be_a_link_to_another_folder(tmp_path):
    root = build(tmp_path / "set")
    (root / "labels").rename(tmp_path / "elsewhere")
    (root / "labels").symlink_to(tmp_path / "elsewhere")
    assert len(open_dataset("yolo", root)) == 3


def test_shares_are_of_the_picture_as_it_is_shown(tmp_path):
    root = build(tmp_path)
    picture(root / "images/train/a.jpg", orientation=6)
    assert open_dataset("yolo", root).samples[0].size_wh == (40, 50)
    assert boxes(open_dataset("yolo", root))["images/train/a.jpg/0"] == [pytest.approx([12, 12.5, 28, 37.5])]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty annotation"), ("1 0.5 0.5 0.4 0.5", "broken annotation"), ("0 0.5 0.5 0.4", "broken annotation"),
        ("0 0.5 0.5 0.4 wide", "broken annotation"), ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.9", "broken annotation"),
        ("0 0.9 0.5 0.4 0.5", "box outside"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_text_is_named(text, kind, tmp_path):
    root = build(tmp_path)
    lines(root / "labels/train/a.txt", [text])
    assert [one for one, _ in named("yolo", root)] == [kind]


@pytest.mark.parametrize("content", ["names: 3", "nc: 1", "a: ["])
def test_a_list_of_classes_that_cannot_be_read_is_one_line(content, tmp_path):
    root = build(tmp_path)
    lines(root / "data.yaml", [content])
    with pytest.raises(UsageError, match=r"^expected names of classes in [^\n]*data\.yaml [^\n]*$"):
        open_dataset("yolo", root)
