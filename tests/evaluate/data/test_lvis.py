"""LVIS: where its pictures are, and which names it says are absent."""

import json
from pathlib import Path

from cliploc.evaluate.data import open_dataset, open_prompted
from tests.evaluate.data.folders import boxes, instances, picture

PLACES = {7: "val2017/000000000007.jpg", 5: "train2017/000000000005.jpg"}
SYNONYMS = {12: ["flip-flop_(sandal)", "thong"], 3: ["alarm_clock"], 9: ["bun", "roll"]}
DOCUMENT = instances(
    PLACES,
    {number: names[0] for number, names in SYNONYMS.items()},
    [(1, 7, 3, [5, 6, 20, 30], 0), (2, 5, 12, [0, 0, 10, 40], 0)],
)
for one, absent in zip(DOCUMENT["images"], ([9, 12, 77], []), strict=True):
    one["coco_url"] = f"http://images.cocodataset.org/{one.pop('file_name')}"
    one |= {"neg_category_ids": absent, "not_exhaustive_category_ids": []}
for one in DOCUMENT["categories"]:
    one |= {"synonyms": SYNONYMS[one["id"]], "frequency": "c"}


def build(root: Path) -> Path:
    """Two pictures, one of the training set; of the other it is known that two names are absent."""
    (root / "lvis_v1_val.json").write_text(json.dumps(DOCUMENT))
    for place in PLACES.values():
        picture(root / place)
    return root


def test_pictures_of_both_sets_and_synonyms_without_underscores(tmp_path):
    dataset = open_dataset("lvis", build(tmp_path))
    assert boxes(dataset) == {"train2017/000000000005/12": [[0, 0, 10, 40]], "val2017/000000000007/3": [[5, 6, 25, 36]]}
    assert [one.id for one in dataset.samples] == [*sorted(boxes(dataset))], "by picture, not as in the file"
    synonyms = [("alarm clock",), ("bun", "roll"), ("flip-flop (sandal)", "thong")]
    assert [one.synonyms for one in dataset.classes] == synonyms


def test_only_names_known_to_be_absent_are_asked(tmp_path):
    found = open_prompted("lvis", build(tmp_path), negatives="all")
    asked = {"train2017/000000000005.jpg": (2,), "val2017/000000000007.jpg": (0, 1, 2)}
    assert {one.id: one.labels for one in found.samples} == asked
