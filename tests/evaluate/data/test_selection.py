"""Subsets, classes, limits and samples; roles; the development set read whole."""

from pathlib import Path

import numpy as np
import pytest

from cliploc.errors import UsageError
from cliploc.evaluate.data import open_dataset, readers, subsets
from cliploc.evaluate.data.wsol import imagenet_class_names
from tests.evaluate.data import folders

DEV = Path(__file__).parents[3] / "../shared/data/ilsvrc_val_dev"
needs_dev = pytest.mark.skipif(not DEV.is_dir(), reason=f"no development pictures at {DEV}")


@pytest.fixture
def root(tmp_path):
    """Twenty pictures of four labels."""
    rows = ["path,label,x0,y0,x1,y1"]
    for i in range(20):
        rows.append(f"{i:02}.jpg,{('cat|kitten', 'dog', 'crane', 'machine|crane')[i % 4]},1,2,30,40")
        folders.picture(tmp_path / f"{i:02}.jpg")
    folders.lines(tmp_path / "boxes.csv", rows)
    return tmp_path


def ids(root, **selection):
    return [one.id for one in open_dataset("folder", root, **selection).samples]


@pytest.mark.parametrize("names", [["cat"], ["KITTEN"], [" cat ", "kitten"]])
def test_classes_by_name_and_synonym(names, root):
    dataset = open_dataset("folder", root, classes=names)
    assert [one.id for one in dataset.samples] == ["00.jpg", "04.jpg", "08.jpg", "12.jpg", "16.jpg"]
    assert len(dataset.classes) == 4  # predictions still choose among all


def test_a_name_goes_before_a_synonym_and_ambiguity_is_named(root):
    assert ids(root, classes=["crane"]) == ["02.jpg", "06.jpg", "10.jpg", "14.jpg", "18.jpg"]
    folders.replace(root / "boxes.csv", ",crane,", ",bird|crane,")
    with pytest.raises(UsageError, match=r"'crane' fits 2 classes: choose one of them, bird or machine"):
        ids(root, classes=["crane"])
    with pytest.raises(UsageError, match="unknown class 'dgo': did you mean dog"):
        ids(root, classes=["dgo"])


def test_a_limit_takes_the_first_and_a_sample_is_drawn_alike_each_time(root):
    assert ids(root, limit=3) == ["00.jpg", "01.jpg", "02.jpg"]
    drawn = ids(root, sample=7, seed=3)
    assert drawn == ids(root, sample=7, seed=3) == sorted(drawn)
    assert len(set(drawn)) == 7
    assert drawn != ids(root, sample=7, seed=4)
    assert ids(root, sample=100) == ids(root)
    seen = {one for seed in range(20) for one in ids(root, sample=5, seed=seed)}
    assert seen == set(ids(root)), "drawn from all"


def test_what_cannot_be_used_does_not_count_and_what_is_not_selected_is_not_opened(root):
    (root / "00.jpg").unlink()
    (root / "19.jpg").unlink()
    dataset = open_dataset("folder", root, limit=3)
    assert [one.id for one in dataset.samples] == ["01.jpg", "02.jpg", "03.jpg"]
    assert [one.source for one in dataset.problems] == ["00.jpg"]
    assert len(ids(root, sample=18)) == 18
    assert not open_dataset("folder", root, classes=["dog"]).problems


@pytest.mark.parametrize(
    "selection",
    [
        {"limit": 1, "sample": 1},
        {"limit": 0},
        {"subset": "ten-classes", "classes": ["dog"]},
        {"subset": "ten-classes"},
        {"split": "val"},
    ],
)
def test_a_selection_that_cannot_be_made_is_one_line(selection, root):
    with pytest.raises(UsageError, match=r"^[^\n]*(got|expected|choose)[^\n]*$"):
        open_dataset("folder", root, **selection)


def test_the_ten_classes_are_ilsvrcs_and_test_sets_may_not_tune():
    assert len(subsets.get("ten-classes").labels(imagenet_class_names(), "ilsvrc")) == 10
    roles = {f"{one.name} {split.name}": split.role for one in readers for split in one.splits}
    reported = {"ilsvrc val", "cub test", "openimages30k test", "voc val", "voc test", "coco val2017"}
    assert {name for name, role in roles.items() if role == "report"} >= {*reported, "wsol report", "folder report"}
    assert not [name for name, role in roles.items() if role == "tune" and "test" in name]
    for one in readers:
        for line in one.layout.splitlines():
            assert len(line) < 80


@needs_dev
def test_the_development_set():
    dataset = open_dataset("wsol", DEV)
    assert (len(dataset), len(dataset.classes), len(dataset.problems)) == (677, 1000, 0)
    assert sum(len(one.boxes_xyxy) for one in dataset.samples) == 994
    assert [one.wnid for one in dataset.classes] == [one.wnid for one in imagenet_class_names()]
    first = dataset.samples[0]
    assert (first.id, first.size_wh) == ("val/ILSVRC2012_val_00000355.JPEG", (333, 500))
    np.testing.assert_array_equal(first.boxes_xyxy, [[76, 135, 292, 473]])
    ten = open_dataset("wsol", DEV, subset="ten-classes")
    assert len({one.label for one in ten.samples}) == 10
    assert len(ten) == 36
