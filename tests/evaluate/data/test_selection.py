"""Subsets, classes, limits and samples; boxes clipped and turned; `cliploc datasets`; the development set."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cliploc.errors import UsageError
from cliploc.evaluate.data import open_dataset, readers, subsets
from cliploc.evaluate.data._base import clipped, turned, turned_wh
from cliploc.evaluate.data.wsol import imagenet_class_names
from tests.commands import cliploc_, python, succeeded
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


# --------------------------------------------------------------------------------------------------- boxes and pictures
SIDES = st.integers(1, 3000)
NUMBERS = st.one_of(st.floats(-5000, 5000), st.integers(-5000, 5000).map(float), st.just(math.nan), st.just(math.inf))


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), st.tuples(SIDES, SIDES))
def test_clipped_boxes_lie_in_the_picture_and_others_are_named(box, size_wh):
    width, height = size_wh
    inside, problem = clipped(box, size_wh)
    if inside is None:
        x0, y0, x1, y1 = box
        beside = x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height
        is_box = all(map(math.isfinite, box)) and x0 <= x1 and y0 <= y1
        assert problem is not None
        assert problem[0] == ("box outside" if is_box and beside else "broken box")
        assert problem[1].endswith("left out")
        return
    x0, y0, x1, y1 = np.array(inside, np.float32)  # as it will be stored
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    # The intersection with the picture, and nothing but it, to float32.
    expected = (max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height))
    assert inside == pytest.approx(expected, rel=1e-6, abs=1e-30)
    inside_before = box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
    assert (problem is None) == inside_before
    if not inside_before:
        assert problem is not None
        assert problem[0] == "box outside"
        assert problem[1].endswith("clipped")


@given(st.integers(1, 8), st.tuples(st.integers(4, 30), st.integers(4, 30)), st.data())
def test_a_box_turns_as_pillow_turns_the_picture(orientation, size_wh, data):
    width, height = size_wh
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    stored = np.zeros((height, width), np.uint8)
    stored[y0:y1, x0:x1] = 255
    picture = Image.fromarray(stored)
    picture.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(picture)
    assert turned_wh(size_wh, orientation) == upright.size
    assert turned((x0, y0, x1, y1), size_wh, orientation) == upright.getbbox()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_a_stored_picture_follow_its_exif_orientation(orientation, tmp_path):
    root = folders.ilsvrc(tmp_path)
    path = folders.picture(root / "val/ILSVRC2012_val_00000001.JPEG", (500, 375), orientation)
    sample = open_dataset("ilsvrc", root).samples[0]
    assert sample.path == path
    with Image.open(path) as picture:
        assert sample.size_wh == ImageOps.exif_transpose(picture).size
    assert sample.boxes_xyxy[0].tolist() == list(turned((111, 108, 441, 193), (500, 375), orientation))
    assert [kind for kind, _ in folders.named("ilsvrc", root)] == (["turned picture"] if orientation > 1 else [])


def test_a_picture_annotated_as_displayed_is_not_turned(tmp_path):
    root = folders.ilsvrc(tmp_path)
    folders.picture(root / "val/ILSVRC2012_val_00000001.JPEG", (375, 500), orientation=6)  # shown as 500×375
    dataset = open_dataset("ilsvrc", root)
    assert dataset.samples[0].boxes_xyxy[0].tolist() == [111, 108, 441, 193]
    assert not dataset.problems


def test_masks_do_not_turn(tmp_path):
    root = folders.openimages30k(tmp_path)
    folders.picture(root / "OpenImages/test/0bt_c3/0a51958f.jpg", orientation=3)
    assert folders.named("openimages30k", root) == [("turned picture", "test/0bt_c3/0a51958f.jpg")]
    assert len(open_dataset("openimages30k", root)) == 1


# ----------------------------------------------------------------------------------------------------- cliploc datasets
DOCS = Path(__file__).parents[3] / "docs"


def test_every_dataset_is_listed_with_splits_and_source():
    result = cliploc_("datasets")
    assert (result.code, result.err) == (0, "")
    for one in readers:
        (line,) = (line for line in result.out.splitlines() if line.startswith(f"{one.name} "))
        assert one.source in line
        for split in one.splits:
            assert split.name in line
            assert split.role in line
    assert "ten-classes" in result.out


@pytest.mark.parametrize("name", readers.names())
def test_all_about_one_holds_its_layout_and_json_says_of_a_good_folder_what_lines_say(name, tmp_path):
    about = succeeded("datasets", name)
    assert readers.get(name).layout in about.out
    root = folders.make(name, tmp_path)
    result, document = cliploc_("datasets", name, "--root", root), cliploc_("datasets", name, "--root", root, "--json")
    following = f"next: cliploc benchmark boxes --dataset {name} --root {root} --out results\n"
    assert (result.code, document.code, result.err, document.err) == (0, 0, following, "")
    facts = json.loads(document.out)
    dataset = open_dataset(name, root)
    assert facts["schema_version"] == 1
    assert facts["samples"] == len(dataset)
    assert facts["boxes"] + facts["masks"] > 0
    for key in ("pictures", "samples", "classes"):
        assert re.search(rf"^{key} +{facts[key]}\b", result.out, re.M)
    assert sum(facts["problems"].values()) == len(facts["named"]) == len(dataset.problems)
    for kind, count in facts["problems"].items():
        assert f"{count} {kind}, left out by design" in result.out


def test_problems_are_1_and_counted_by_kind(tmp_path):
    root = folders.folder(tmp_path)
    for i in range(5):
        folders.picture(root / f"more/{i}.jpg")
    (root / "sub/b.png").unlink()
    result = cliploc_("datasets", "folder", "--root", root)
    assert result.code == 1
    assert re.search(r"^problems +6$", result.out, re.M)
    assert "5 unannotated picture" in result.out
    assert "· more/2.jpg: not in boxes.csv: left out" in result.out
    assert "· … and 2 more" in result.out
    assert "more/4.jpg" not in result.out
    assert "· sub/b.png: expected a picture at" in result.out
    named = json.loads(cliploc_("datasets", "folder", "--root", root, "--json").out)["named"]
    unannotated = [one["source"] for one in named if one["kind"] == "unannotated picture"]
    assert unannotated == [f"more/{i}.jpg" for i in range(5)]


def test_the_list_needs_no_torch():
    code = "import sys; from cliploc.cli import main; main(['datasets']); sys.exit('torch' in sys.modules)"
    assert python("-c", code, check=False).returncode == 0


def test_the_page_of_datasets_names_every_reader_and_its_example_is_the_layout():
    page = (DOCS / "datasets.md").read_text()
    assert [name for name in readers.names() if f"`{name}`" not in page] == []
    assert readers.get("folder").layout in page
