"""PartImageNet: parts as classes, and the places that its files may have."""

import json
from pathlib import Path

import pytest

from cliploc.datasets import open_dataset
from tests.datasets.folders import boxes, picture

DOCUMENT = {
    "images": [{"id": 0, "file_name": "n01440764_10043.JPEG", "width": 50, "height": 40}],
    "categories": [
        {"id": 9, "name": "Fish Head", "supercategory": "Fish"},
        {"id": 11, "name": "Fish Fin", "supercategory": "Fish"},
    ],
    "annotations": [
        {"id": 1, "image_id": 0, "category_id": 9, "bbox": [1, 2, 10, 20], "iscrowd": 0, "area": 200},
        {"id": 2, "image_id": 0, "category_id": 11, "bbox": [20, 0, 10, 10], "iscrowd": 0, "area": 100},
        {"id": 3, "image_id": 0, "category_id": 11, "bbox": [30, 20, 10, 10], "iscrowd": 0, "area": 100},
    ],
}


def build(root: Path, place: str = "annotations/test", pictures: str = "images/test") -> Path:
    """A fish with a head and two fins."""
    (root / place).mkdir(parents=True, exist_ok=True)
    (root / place / "test.json").write_text(json.dumps(DOCUMENT))
    picture(root / pictures / "n01440764_10043.JPEG")
    return root


@pytest.mark.parametrize("places", [("annotations/test", "images/test"), ("annotations", "images/test"), ("", "test")])
def test_parts_and_places(places, tmp_path):
    dataset = open_dataset("partimagenet", build(tmp_path, *places))
    assert [one.name for one in dataset.classes] == ["fish head", "fish fin"]
    assert boxes(dataset) == {
        "n01440764_10043/9": [[1, 2, 11, 22]],
        "n01440764_10043/11": [[20, 0, 30, 10], [30, 20, 40, 30]],
    }
