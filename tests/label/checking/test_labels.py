"""Which labels a set has, in each format, and what is odd about them without a model."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliploc.errors import UsageError
from cliploc.formats import ExportSettings, LabelledBox
from cliploc.label.checking.labels import FOLDERS, doubles, read_set, spelt_in_two_ways
from cliploc.runs.labelled_set import BEYOND_EDGE, odd_box
from tests.label.annotated import annotated, written

BOXES = [[1, 2, 21, 32], [4, 4, 14, 14]]


def photo(path: Path, size: tuple[int, int] = (40, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


@pytest.mark.parametrize("name", ["coco", "csv", "cvat", "labelstudio", "voc", "yolo"])
def test_every_format_is_read_with_its_own_ids(name: str, tmp_path: Path) -> None:
    path = photo(tmp_path / "photos" / "a.jpg")
    picture = annotated("a.jpg", path, (40, 40), BOXES, [0, 1])
    outputs = written(name, [picture], ExportSettings(("cat", "dog"), "", "", False), tmp_path / "out")
    if name == "labelstudio":  # we export drafts
        outputs[0].write_text(outputs[0].read_text().replace('"predictions"', '"annotations"'))
    data = read_set(outputs[0], tmp_path / "photos", None)
    [one] = data.pictures
    assert (one.id, one.size_wh, data.failed) == ("a.jpg", (40, 40), {})
    assert [box.name for box in one.boxes] == ["cat", "dog"]
    np.testing.assert_allclose([box.xyxy for box in one.boxes], BOXES, atol=0.6)
    ids = {"csv": ["2", "3"], "labelstudio": [box.id for box in one.boxes]}.get(name, ["1", "2"])
    assert [box.id for box in one.boxes] == ids


def test_pictures_lie_beside_the_labels_and_those_that_do_not_are_named(tmp_path: Path) -> None:
    photo(tmp_path / "train" / "a.jpg")
    photo(tmp_path / "train" / "more.jpg")
    names = ("a.jpg", "b.jpg")
    content = {
        "images": [{"id": i, "file_name": name, "width": 40, "height": 40} for i, name in enumerate(names)],
        "annotations": [{"id": "x7", "image_id": 0, "category_id": 3, "bbox": [1, 2, 20, 30]}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    labels = tmp_path / "annotations" / "all.json"
    labels.parent.mkdir()
    labels.write_text(json.dumps(content))
    data = read_set(labels, None, None)
    assert [[box.id for box in one.boxes] for one in data.pictures] == [["x7"]]
    assert data.unnamed == 1
    assert [*data.failed] == ["b.jpg"]
    photo(tmp_path / "empty" / "other.jpg")
    with pytest.raises(UsageError, match=r"got none \(a.jpg: no picture below .*\): check both paths"):
        read_set(labels, tmp_path / "empty", None)


def test_folders_of_classes_have_one_label_for_each_picture(tmp_path: Path) -> None:
    for name in ("train/cat/1.jpg", "train/dog/2.jpg"):
        photo(tmp_path / "set" / name, (30, 20))
    data = read_set(tmp_path / "set", None, None)
    assert data.format == FOLDERS
    assert [(one.boxes[0].id, one.boxes[0].name, one.boxes[0].xyxy) for one in data.pictures] == [
        ("train/cat/1.jpg", "cat", (0, 0, 30, 20)),
        ("train/dog/2.jpg", "dog", (0, 0, 30, 20)),
    ]


@pytest.mark.parametrize(
    ("xyxy", "reason"),
    [
        ((0, 0, 40, 40.8), None),
        ((5, 5, 5, 9), "without area"),
        ((9, 5, 5, 9), "without area"),
        ((50, 5, 60, 9), "outside the picture"),
        ((-9, 5, 20, 20), BEYOND_EDGE),
        ((5, 5, 6, 6), "of one pixel"),
        ((5, 5, 6, 30), "one pixel wide"),
        ((5, 5, float("nan"), 30), "an edge is not a number"),
    ],
)
def test_odd_boxes(xyxy: tuple[float, float, float, float], reason: str | None) -> None:
    assert odd_box(LabelledBox("1", "cat", xyxy), (40, 40)) == reason


def test_doubles_have_one_name_and_nearly_the_same_place() -> None:
    xyxy = np.array([[0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 20, 20.5], [0, 12, 20, 32.0]])
    found = doubles(xyxy, np.array([0, 1, 0, 0]))
    assert [chance > 0.9 for chance, _ in found] == [False, False, True, False]
    assert found[2][1] == 0
    assert doubles(xyxy[:0], np.zeros(0, int)) == []


def test_names_that_are_spelt_in_two_ways() -> None:
    names = ["traffic light"] * 3 + ["Traffic_Light", "car", "car", "cars", "bus", "glass", "gas", "C", "C++"]
    assert spelt_in_two_ways(Counter(names)) == {"Traffic_Light": "traffic light", "cars": "car"}
