"""Label files come back as typed boxes: whatever we write, and what others put into each format."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliploc.formats import AnnotatedPicture, ExportSettings, LabelledBox, exports
from cliploc.formats.reading import PictureFinder, read_labels
from tests.label.annotated import annotated, written

SIZES = {"a.jpg": (61, 37), "sub/b.png": (30, 50), "c.jpg": (20, 20)}
BOXES = {"a.jpg": [[1, 2, 30, 20], [10, 10, 61, 37]], "sub/b.png": [], "c.jpg": [[0, 0, 20, 20]]}
NAMES = ("cat", "traffic light")


@pytest.fixture
def pictures(tmp_path: Path) -> list[AnnotatedPicture]:
    made = []
    for number, (name, boxes) in enumerate(BOXES.items(), start=1):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZES[name]).save(path)
        made.append(annotated(name, path, SIZES[name], boxes, range(len(boxes)), number=number))
    return made


def boxes_of(path: Path) -> dict[str, list[LabelledBox]]:
    """Picture → its boxes, found by the names in the set."""
    labels = read_labels(path)
    find = PictureFinder(SIZES, labels.listed, {})
    found = {find(one.names, one.more): one for one in labels.pictures}
    assert all(one.size_wh in (None, SIZES[name]) for name, one in found.items())
    return {name: list(one.boxes(SIZES[name], False)) for name, one in found.items()}


@pytest.mark.parametrize("name", exports.names())
def test_what_we_write_comes_back_with_names_edges_and_ids(name, pictures, tmp_path):
    path = written(name, pictures, ExportSettings(NAMES, "m", "/data/?d="), tmp_path / "out")[0]
    if name == "labelstudio":  # what a person has approved
        path.write_text(path.read_text().replace('"predictions"', '"annotations"'))
    found = boxes_of(path)
    assert found.keys() == BOXES.keys()
    for picture, boxes in found.items():
        assert [box.name for box in boxes] == [NAMES[i] for i in range(len(boxes))]
        assert len({box.id for box in boxes}) == len(boxes) == len(BOXES[picture])
        assert {box.kind for box in boxes} <= {"box"}
        if boxes:
            np.testing.assert_allclose([box.xyxy for box in boxes], BOXES[picture], atol=0.5)


def test_ids_are_the_sets_and_boxes_are_as_written(tmp_path):
    things = [
        {"id": 40, "image_id": 7, "category_id": 2, "bbox": [-3, 0, 5, 5]},
        {"id": "x", "image_id": 7, "category_id": 2, "bbox": [1, 1, 0, 4], "segmentation": [[1, 1, 5, 1, 5, 5]]},
    ]
    images, categories = [{"id": 7, "file_name": "c.jpg"}], [{"id": 2, "name": "cat"}]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": things}))
    assert [(box.id, box.xyxy) for box in boxes_of(path)["c.jpg"]] == [("40", (-3, 0, 2, 5)), ("x", (1, 1, 1, 5))]
    masks = [box.mask for box in read_labels(path).pictures[0].boxes((20, 20), True)]
    assert [mask and int(mask()[1::2].sum()) for mask in masks] == [None, 6]


def test_polygons_have_the_box_around_them(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "labels/c.txt").write_text("0 0.1 0.1 0.3 0.1 0.2 0.4\n")
    (tmp_path / "c.xml").write_text(
        '<annotations><image name="c.jpg" width="20" height="20"><polygon label="cat" points="2,2;6,2;4,8"/></image>'
        "</annotations>"
    )
    for path in (tmp_path, tmp_path / "c.xml"):
        [box] = boxes_of(path)["c.jpg"]
        assert (box.name, box.kind, box.xyxy) == ("cat", "polygon", pytest.approx((2, 2, 6, 8)))
