"""LVIS: where its pictures are, and which names it says are absent."""

import json
from pathlib import Path

from cliploc.datasets import open_asked, open_dataset
from tests.datasets.folders import boxes, picture

DOCUMENT = {
    "images": [
        {
            "id": number,
            "coco_url": f"http://images.cocodataset.org/{place}",
            "width": 50,
            "height": 40,
            "neg_category_ids": absent,
            "not_exhaustive_category_ids": [],
        }
        for number, place, absent in (
            (7, "val2017/000000000007.jpg", [9, 12, 77]),
            (5, "train2017/000000000005.jpg", []),
        )
    ],
    "categories": [
        {"id": 12, "name": "flip-flop_(sandal)", "synonyms": ["flip-flop_(sandal)", "thong"], "frequency": "c"},
        {"id": 3, "name": "alarm_clock", "synonyms": ["alarm_clock"], "frequency": "f"},
        {"id": 9, "name": "bun", "synonyms": ["bun", "roll"], "frequency": "r"},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [5, 6, 20, 30], "area": 600},
        {"id": 2, "image_id": 5, "category_id": 12, "bbox": [0, 0, 10, 40], "area": 400},
    ],
}


def build(root: Path) -> Path:
    """Two pictures, one of the training set; of the other it is known that two names are absent."""
    (root / "lvis_v1_val.json").write_text(json.dumps(DOCUMENT))
    for place in ("val2017/000000000007.jpg", "train2017/000000000005.jpg"):
        picture(root / place)
    return root


def test_pictures_of_both_sets_and_synonyms_without_underscores(tmp_path):
    dataset = open_dataset("lvis", build(tmp_path))
    assert boxes(dataset) == {"train2017/000000000005/12": [[0, 0, 10, 40]], "val2017/000000000007/3": [[5, 6, 25, 36]]}
    assert [one.id for one in dataset.samples] == [*sorted(boxes(dataset))], "by picture, not as in the file"
    assert [one.synonyms for one in dataset.classes] == [
        ("alarm clock",),
        ("bun", "roll"),
        ("flip-flop (sandal)", "thong"),
    ]


def test_only_names_known_to_be_absent_are_asked(tmp_path):
    found = open_asked("lvis", build(tmp_path), negatives="all")
    assert {one.id: one.labels for one in found.samples} == {
        "train2017/000000000005.jpg": (2,),
        "val2017/000000000007.jpg": (0, 1, 2),
    }
