"""Each reader on a folder in the official format: boxes in our convention, names, and every kind of problem."""

import dataclasses
import re

import numpy as np
import pytest

from cliploc.errors import UsageError
from cliploc.evaluate.data import BY_DESIGN, open_dataset, readers
from tests.evaluate.data import folders
from tests.evaluate.data.folders import boxes, named, picture, replace

ALL = readers.names()
CUB, V2, COCO = "CUB_200_2011/", "metadata/ILSVRC/val/", "annotations/instances_val2017.json"


@pytest.mark.parametrize("name", ALL)
def test_every_reader_gives_samples_that_hold_what_they_promise(name, tmp_path):
    dataset = open_dataset(name, folders.make(name, tmp_path))
    assert dataset.split == readers.get(name).splits[0].name
    assert len({one.id for one in dataset.samples}) == len(dataset.samples) > 0
    assert {one.kind for one in dataset.problems} <= BY_DESIGN
    for one in dataset.samples:
        assert one.path.is_file()
        assert 0 <= one.label < len(dataset.classes)
        assert one.boxes_xyxy.dtype == np.float32
        assert len(one.boxes_xyxy) or one.masks
        x0, y0, x1, y1 = one.boxes_xyxy.T
        assert ((x0 >= 0) & (x0 < x1) & (x1 <= one.size_wh[0])).all()
        assert ((y0 >= 0) & (y0 < y1) & (y1 <= one.size_wh[1])).all()
    for one in dataset.classes:
        assert one.name == one.synonyms[0]
    paths = [one.path for one in dataset.samples]
    assert sorted(set(paths), key=paths.index) == [p for i, p in enumerate(paths) if i == 0 or paths[i - 1] != p]


@pytest.mark.parametrize("kind", ["missing picture", "broken picture"])
@pytest.mark.parametrize("name", ALL)
def test_a_missing_or_broken_picture_is_named_and_the_others_stay(name, kind, tmp_path):
    root = folders.make(name, tmp_path)
    full = open_dataset(name, root)
    path = full.samples[0].path
    lost = [one.id for one in full.samples if one.path == path]
    path.unlink()
    if kind == "broken picture":
        path.write_bytes(b"no picture")
    if len(lost) == len(full):
        with pytest.raises(UsageError, match=f"{len(lost)} {kind}"):
            open_dataset(name, root)
        return
    rest = open_dataset(name, root)
    assert [one.id for one in rest.samples] == [one.id for one in full.samples if one.path != path]
    found = [(one.kind, one.source) for one in rest.problems if one.kind not in BY_DESIGN]
    assert found == [(kind, one) for one in lost]


@pytest.mark.parametrize("name", ALL)
def test_a_folder_without_its_files_is_one_line(name, tmp_path):
    with pytest.raises(UsageError, match=r"^expected[^\n]*found no[^\n]*$"):
        open_dataset(name, tmp_path)
    with pytest.raises(UsageError, match=r"expected .* found no folder there"):
        open_dataset(name, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "kind"),
    [
        ("cub", CUB + "bounding_boxes.txt", "3 0.0 4.0 50.0 36.0\n", "", "empty annotation"),
        ("wsol", "metadata/image_sizes.txt", "val/a.JPEG,50,40\n", "", "metadata"),
        ("wsol", "metadata/class_labels.txt", "val/a.JPEG,0", "val/a.JPEG,2", "label mismatch"),
        ("wsol", "metadata/image_ids.txt", "val/a.JPEG\n", "val/a.JPEG\nval/a.JPEG\n", "metadata"),
        ("wsol", "metadata/localization.txt", "5,6,30,39", "5,6,30,43", "box outside"),  # clipped
        ("wsol", "metadata/localization.txt", "5,6,30,39", "51,6,60,39", "box outside, empty annotation"),
        ("wsol", "metadata/localization.txt", "5,6,30,39", "30,6,5,39", "broken box, empty annotation"),
        ("coco", COCO, '"category_id": 72', '"category_id": 9', "label mismatch"),
        ("coco", COCO, '"image_id": 139, "category_id": 72', '"image_id": 9, "category_id": 72', "metadata"),
        ("coco", COCO, "[5.5, 6.25, 20.0, 30.5]", "[5, 5, -2, 8]", "broken box, empty annotation"),
        ("coco", COCO, '"id": 2, "image_id"', '"id": 1, "image_id"', "duplicate id"),
    ],
)
def test_what_is_wrong_in_a_line_is_named(name, file, old, new, kind, tmp_path):
    root = folders.make(name, tmp_path)
    replace(root / file, old, new)
    assert ", ".join(sorted(one for one, _ in named(name, root) if one not in BY_DESIGN)) == kind


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "reason"),
    [
        ("wsol", "metadata/image_sizes.txt", "50,40", "x,40", "row 1: expected integers, got x,40"),
        ("wsol", "synsets.csv", "0,n01440764", "5,n01440764", "expected the labels 0, 1, 2 … in"),
        ("cub", CUB + "bounding_boxes.txt", "3 0.0 4.0", "3 zero 4.0", "row 3: expected numbers, got zero"),
        ("cub", CUB + "bounding_boxes.txt", "3 0.0 4.0", "3 4.0", "line 3: expected 5 values, got 4"),
        ("folder", "boxes.csv", "path,label", "file,label", "to begin with the line path,label,x0,y0,x1,y1"),
        ("folder", "boxes.csv", "a.jpg,dog,0,0,5,5", "a.jpg,dog,0,0,5,five", "row 3: expected four numbers"),
        ("coco", COCO, '"categories"', '"kinds"', r"instances_val2017\.json.*: export it again"),
    ],
)
def test_what_cannot_be_read_is_one_line(name, file, old, new, reason, tmp_path):
    root = folders.make(name, tmp_path)
    replace(root / file, (root / file).read_text() if old is None else old, new)
    with pytest.raises(UsageError, match=reason) as caught:
        open_dataset(name, root)
    assert "\n" not in str(caught.value)


def test_wsol_keeps_numbers_and_original_sizes(tmp_path):
    dataset = open_dataset("wsol", folders.wsol(tmp_path))
    assert boxes(dataset)["val/b.JPEG"] == [[0, 0, 59, 19], [10, 5, 20, 15]]
    assert [one.size_wh for one in dataset.samples] == [(50, 40), (60, 20), (50, 40)]
    assert dataset.classes[0].synonyms == ("tench", "Tinca tinca")
    assert dataset.classes[1] == dataclasses.replace(dataset.classes[1], name="my thing", wnid="")
    assert open_dataset("wsol", tmp_path, "tune").role == "tune"


@pytest.mark.parametrize("layout", ["flat", "by class", "Kaggle's"])
def test_ilsvrc_reads_the_official_xml(layout, tmp_path):
    folders.ilsvrc(tmp_path, by_class=layout == "by class")
    if layout == "Kaggle's":
        (tmp_path / "ILSVRC/Data/CLS-LOC").mkdir(parents=True)
        (tmp_path / "val").rename(tmp_path / "ILSVRC/Data/CLS-LOC/val")
        (tmp_path / "Annotations").rename(tmp_path / "ILSVRC/Annotations")
    dataset = open_dataset("ilsvrc", tmp_path)
    assert boxes(dataset) == {
        "val/ILSVRC2012_val_00000001.JPEG": [[111, 108, 441, 193]],
        "val/ILSVRC2012_val_00000293.JPEG": [[0, 0, 50, 40]],
    }
    assert [one.label for one in dataset.samples] == [65, 0]
    assert dataset.classes[65].wnid == "n01751748"
    assert (dataset.role, len(dataset.classes)) == ("report", 1000)
    assert not dataset.problems


def test_ilsvrc_metadata_win_and_give_the_same_ids(tmp_path):
    of_xml = open_dataset("ilsvrc", folders.ilsvrc(tmp_path))
    both = open_dataset("ilsvrc", folders.ilsvrc(tmp_path, with_metadata=True))
    assert [one.id for one in both.samples] == [one.id for one in of_xml.samples]
    assert [one.label for one in both.samples] == [one.label for one in of_xml.samples]
    assert boxes(both)["val/ILSVRC2012_val_00000293.JPEG"] == [[0, 0, 49, 39]]


def test_ilsvrc_names_what_is_wrong(tmp_path):
    root = folders.ilsvrc(tmp_path, by_class=True)
    annotations = root / "Annotations/CLS-LOC/val"
    picture(root / "val/n01440764/ILSVRC2012_val_00000009.JPEG")
    for number, things in {
        "00000003": [],
        "00000004": [("n00000000", (1, 1, 5, 5), 0)],
        "00000005": [("n01440764", (1, 1, 5, 5), 0), ("n01443537", (1, 1, 5, 5), 0)],
        "00000006": [("n01443537", (1, 1, 5, 5), 0)],
    }.items():
        folders.xml(annotations / f"ILSVRC2012_val_{number}.xml", (50, 40), things)
        picture(root / f"val/n01440764/ILSVRC2012_val_{number}.JPEG")
    (annotations / "ILSVRC2012_val_00000007.xml").write_text("<annotation>")
    picture(root / "val/n01440764/ILSVRC2012_val_00000007.JPEG")
    dataset = open_dataset("ilsvrc", root)
    assert len(dataset) == 2
    assert [(one.kind, re.findall(r"0000000\d", one.source)[0][-1]) for one in dataset.problems] == [
        ("unannotated picture", "9"),
        ("broken annotation", "7"),
        ("empty annotation", "3"),
        ("label mismatch", "4"),
        ("label mismatch", "5"),
        ("label mismatch", "6"),
    ]
    assert "annotated as n01443537, but in the folder n01440764" in dataset.problems[-1].reason


@pytest.mark.parametrize("wnids", [False, True])
@pytest.mark.parametrize(
    ("pictures", "names", "mapping"),
    [("hash", "hash", False), ("number", "number", False), ("hash", "number", True), ("number", "hash", True)],
)
def test_imagenetv2_of_either_release(pictures, names, mapping, wnids, tmp_path):
    dataset = open_dataset("imagenetv2", folders.imagenetv2(tmp_path, pictures, names, mapping, wnids))
    files = folders.HASHES.keys() if pictures == "number" else folders.HASHES.values()
    assert [one.path.name for one in dataset.samples] == [file.split("/")[1] for file in files]
    assert [one.label for one in dataset.samples] == [0, 0, 1]
    assert not dataset.problems
    assert dataset.role == "tune"


def test_imagenetv2_other_names_without_the_mapping_say_what_to_do(tmp_path):
    root = folders.imagenetv2(tmp_path, "hash", "number")
    with pytest.raises(UsageError, match=r"3 missing picture; .*put mapping\.txt beside the boxes"):
        open_dataset("imagenetv2", root)


def test_cub_width_and_height_become_edges(tmp_path):
    test = open_dataset("cub", folders.cub(tmp_path))
    assert list(boxes(test).values()) == [[[6, 2, 38, 32]], [[0, 4, 50, 40]]]
    assert [one.name for one in test.classes] == ["Black footed Albatross", "Laysan Albatross"]
    train = open_dataset("cub", tmp_path, "train")
    assert [one.id for one in train.samples] == ["001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg"]
    assert (test.role, train.role) == ("report", "tune")


def test_openimages_masks_and_ignore_regions_and_what_is_wrong(tmp_path):
    root = folders.openimages30k(tmp_path)
    dataset = open_dataset("openimages30k", root)
    books, cups = dataset.samples
    assert [mask.name for mask in books.masks] == ["0a51958f_m0bt_c3_41344f12.png", "0a51958f_m0bt_c3_48f37c0f.png"]
    assert (books.ignore.name, cups.ignore.name) == ("0a51958f_ignore.png", "32fdab44_ignore.png")
    assert books.boxes_xyxy.shape == (0, 4)
    assert [(one.name, one.wnid) for one in dataset.classes] == [("Book", "/m/0bt_c3"), ("Mug", "/m/02jvh9")]
    assert [split.role for split in readers.get("openimages30k").splits] == ["report", "tune"]
    (root / "OpenImages/test/02jvh9/32fdab44_m02jvh9_7dab3053.png").unlink()
    assert named("openimages30k", root) == [("missing mask", "test/02jvh9/32fdab44.jpg")]
    (root / "class-descriptions-boxable.csv").write_text("/m/01yrx,Cat\n")
    with pytest.raises(UsageError, match="expected a name for /m/0bt_c3"):
        open_dataset("openimages30k", root)


def test_voc_counts_from_1_and_leaves_difficult_objects_out(tmp_path):
    dataset = open_dataset("voc", folders.voc(tmp_path))
    assert boxes(dataset) == {"2008_000002/dog": [[0, 0, 50, 40]], "2008_000002/tvmonitor": [[33, 10, 44, 40]]}
    assert dataset.classes[dataset.samples[1].label].synonyms == ("TV monitor", "television")
    assert len(dataset.classes) == 20
    left_out = [("difficult", "2008_000002/dog"), ("difficult", "2008_000007/cow")]
    assert [(one.kind, one.source) for one in dataset.problems] == left_out


def test_voc_names_what_is_wrong(tmp_path):
    root = folders.voc(tmp_path)
    base = root / "VOCdevkit/VOC2012"
    folders.xml(base / "Annotations/x.xml", (50, 40), [])
    folders.xml(base / "Annotations/y.xml", (50, 40), [("unicorn", (1, 1, 5, 5), 0)])
    folders.lines(base / "ImageSets/Main/val.txt", ["2008_000002 1", "x", "y", "z"])
    found = [problem for problem in named("voc", root) if problem[0] not in BY_DESIGN]
    assert found == [("broken annotation", "z"), ("empty annotation", "x"), ("label mismatch", "y")]
    folders.lines(base / "classes.txt", ["unicorn", "dog", "sofa"])
    picture(base / "JPEGImages/y.jpg")
    listed = open_dataset("voc", root)
    assert [one.synonyms for one in listed.classes] == [("unicorn",), ("dog",), ("sofa",)]
    assert [one.id for one in listed.samples] == ["2008_000002/dog", "y/unicorn"]


@pytest.mark.parametrize(("xml", "pictures"), [("annotations", "images"), (".", "."), ("Annotations", ".")])
def test_voc_without_lists_is_read_with_the_names_of_its_files(xml, pictures, tmp_path):
    folders.xml(tmp_path / xml / "a.xml", (50, 40), [("raccoon", (1, 1, 5, 5), 0), ("bin", (2, 2, 9, 9), 0)])
    folders.xml(tmp_path / xml / "b.xml", (0, 0), [("raccoon", (1, 1, 5, 5), 0)])
    folders.xml(tmp_path / xml / "c.xml", (50, 40), [("raccoon", (1, 1, 5, 5), 0)])
    picture(tmp_path / pictures / "a.jpg")
    picture(tmp_path / pictures / "b.PNG")
    for split in ("val", "train"):
        found = open_dataset("voc", tmp_path, split)
        assert boxes(found) == {"a/bin": [[1, 1, 9, 9]], "a/raccoon": [[0, 0, 5, 5]], "b/raccoon": [[0, 0, 5, 5]]}
        assert [one.name for one in found.classes] == ["bin", "raccoon"]
        assert [(one.kind, one.source) for one in found.problems] == [("missing picture", "c/raccoon")]


def test_a_size_that_differs_is_named_and_the_boxes_belong_to_the_annotation(tmp_path):
    root = folders.voc(tmp_path)
    picture(root / "VOCdevkit/VOC2012/JPEGImages/2008_000002.jpg", (25, 20))
    dataset = open_dataset("voc", root)
    assert dataset.samples[0].size_wh == (50, 40)
    assert [one.kind for one in dataset.problems].count("size mismatch") == 2  # a sample each
    assert "annotated as 50×40, the file has 25×20: taken as resized" in dataset.problems[-1].reason


def test_coco_a_sample_for_each_category_without_crowds(tmp_path):
    dataset = open_dataset("coco", folders.coco(tmp_path))
    assert boxes(dataset) == {
        "000000000139/1": [[0, 0, 10, 40], [20, 0, 30, 40]],
        "000000000139/72": [[5.5, 6.25, 25.5, 36.75]],
    }
    assert [one.name for one in dataset.classes] == ["person", "tv"]  # by category id
    crowds = [("crowd", "annotation 4 of image 139"), ("crowd", "annotation 5 of image 285")]
    assert [(one.kind, one.source) for one in dataset.problems] == crowds
    first, *others = folders.COCO["annotations"]
    folders.coco(tmp_path, {**folders.COCO, "annotations": [first, *others, first]})
    twice = open_dataset("coco", tmp_path)
    assert (boxes(twice), twice.problems[-1].kind) == (boxes(dataset), "duplicate id")
    without_ids = [{key: one[key] for key in one if key != "id"} for one in (first, *others)]
    folders.coco(tmp_path, {**folders.COCO, "annotations": without_ids})
    assert boxes(open_dataset("coco", tmp_path)) == boxes(dataset)


def test_folder_labels_are_names_with_synonyms_and_what_is_wrong_is_named(tmp_path):
    root = folders.folder(tmp_path)
    dataset = open_dataset("folder", root)
    assert boxes(dataset) == {
        "a.jpg/cat|kitten": [[1, 2, 30, 40]],
        "a.jpg/dog": [[0, 0, 5, 5]],
        "sub/b.png": [[10, 10, 50, 40]],
    }
    assert dataset.classes[0].synonyms == ("cat", "kitten")
    picture(root / "c.JPG")
    picture(root / "d.jpg")
    rows = (root / "boxes.csv").read_text().split()
    folders.lines(root / "boxes.csv", [*rows, "d.jpg,dog,,,,", "../e.jpg,dog,1,1,2,2"])
    problems = [("empty annotation", "d.jpg"), ("unannotated picture", "c.JPG"), ("unsafe id", "../e.jpg")]
    assert named("folder", root) == problems
