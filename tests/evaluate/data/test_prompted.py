"""Which absent names a picture is asked for: POPE's three samplings, and what is neither there nor absent."""

import json

import pytest

from cliploc.errors import UsageError
from cliploc.evaluate.data import open_dataset, open_prompted
from tests.evaluate.data import folders

NAMES = ("cat", "dog", "sofa", "cup", "car")
# a is often with sofa; car is the most frequent, but never with it
PICTURES = {
    "a": "cat", "b": "cat sofa", "c": "cat sofa", "d": "cat cup", "e": "car", "f": "car", "g": "car", "h": "car dog",
}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    rows = ["path,label,x0,y0,x1,y1"]
    for name, there in PICTURES.items():
        folders.picture(tmp_path / f"{name}.jpg")
        rows += [f"{name}.jpg,{one},1,2,30,40" for one in there.split()]
    folders.lines(tmp_path / "boxes.csv", rows)
    return tmp_path


def absent_names(root, negatives, **more):
    """Picture → the absent names that it is asked for."""
    found = open_prompted("folder", root, negatives=negatives, **more)
    names = [one.name for one in found.classes]
    return {
        one.id.removesuffix(".jpg"): {names[label] for label in one.labels if label not in one.truth}
        for one in found.samples
    }


def test_popular_confusable_and_all(root):
    popular, confusable, every = (absent_names(root, one) for one in ("popular", "confusable", "all"))
    assert popular["a"] == {"car"}  # in four pictures
    assert confusable["a"] == {"sofa"}  # in two with a cat; a cup in one
    assert popular["b"] == {"car", "cup"} or popular["b"] == {"car", "dog"}
    assert confusable["b"] >= {"cup"}
    assert confusable["e"] == {"dog"}
    assert popular["e"] == {"cat"}
    assert all(every[name] == set(NAMES) - set(there.split()) for name, there in PICTURES.items())
    assert {name: len(one) for name, one in popular.items()} == {
        name: len(there.split()) for name, there in PICTURES.items()
    }


def test_random_ones_are_drawn_by_the_seed_and_the_picture_alone(root):
    first = absent_names(root, "random")
    assert first == absent_names(root, "random")
    assert first != absent_names(root, "random", seed=1)
    assert absent_names(root, "random", limit=3) == {name: first[name] for name in "abc"}
    assert all(len(first[name]) == len(there.split()) for name, there in PICTURES.items())
    assert all(not first[name] & set(there.split()) for name, there in PICTURES.items())


def test_pictures_are_drawn_with_all_their_names_and_counts_are_of_all(root):
    assert absent_names(root, "confusable", limit=1) == {"a": {"sofa"}}
    assert [len(one.truth) for one in open_prompted("folder", root, limit=2).samples] == [1, 2]
    assert len(open_prompted("folder", root, sample=3, seed=2)) == 3
    assert absent_names(root, "all", classes=["cat", "dog"]) == {
        "a": {"dog"}, "b": {"dog"}, "c": {"dog"}, "d": {"dog"}, "h": {"cat"},
    }  # fmt: skip


def test_crowds_and_difficult_things_are_neither_there_nor_absent(tmp_path):
    document = json.loads(json.dumps(folders.COCO))
    document["annotations"].append(
        {"id": 9, "image_id": 285, "category_id": 72, "bbox": [1, 1, 9, 9], "iscrowd": 0, "area": 81}
    )
    dataset = open_dataset("coco", folders.coco(tmp_path / "coco", document))
    person = [one.name for one in dataset.classes].index("person")
    assert dataset.unclear == {(tmp_path / "coco/val2017/000000000285.jpg", person)}
    first, second = open_prompted("coco", tmp_path / "coco").samples
    assert len(first.labels) == 2  # a person and a crowd of persons
    assert person not in second.labels
    [picture] = open_prompted("voc", folders.voc(tmp_path / "voc")).samples
    assert len(picture.labels) == 20  # one of its dogs is not difficult
    assert {label for _, label in open_dataset("voc", tmp_path / "voc").unclear} == {9}  # the cow of the other picture


def test_a_name_without_a_box_that_can_be_used_is_neither(root, tmp_path):
    with (root / "boxes.csv").open("a") as file:
        file.write("\na.jpg,dog,nan,0,9,9\n")
    assert absent_names(root, "all")["a"] == {"sofa", "cup", "car"}
    document = json.loads(json.dumps(folders.COCO))
    document["annotations"].append({"id": 9, "image_id": 285, "category_id": 72, "bbox": [1, 1, 9, 9]})
    document["annotations"][-2]["bbox"] = None
    document["annotations"][-2]["iscrowd"] = 0
    _, second = open_prompted("coco", folders.coco(tmp_path / "coco", document)).samples
    assert second.labels == (*second.truth,)


def test_a_dataset_of_masks_is_refused(tmp_path):
    with pytest.raises(UsageError, match="expected a dataset with true boxes, got openimages30k with masks"):
        open_prompted("openimages30k", folders.openimages30k(tmp_path))
