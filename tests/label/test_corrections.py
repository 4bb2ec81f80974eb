"""Corrected sets of other tools: each format, also written by others, is read to half a pixel, and doubts are named."""

import json
import math
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import supervision
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import astuple
from PIL import Image
from tools.corrections import Walk, numbers_of

from cliploc.errors import UsageError
from cliploc.formats import AnnotatedPicture, ExportSettings, exports
from cliploc.images import rle
from cliploc.images.geometry import iou_matrix
from cliploc.label.corrections import (
    Corrections,
    ReviewedBox,
    UnusableError,
    correction_of,
    read_corrections,
    with_masks,
)
from cliploc.label.drafts import LabelScore, Work, score_drafts, work_on
from cliploc.runs.label_store import Candidate, Candidates, Correction
from tests.commands import check_refusal
from tests.label.annotated import annotated

LABELS = (("cat", "kitten"), ("traffic light",), ("dog", "cat"))
NAMES = tuple(one[0] for one in LABELS)
SIZES = {"a.jpg": (60, 40), "sub/b c.png": (30, 50), "sub/a.jpg": (64, 48), "other/e.jpg": (20, 20)}
BOXES = {"a.jpg": [(0, [1, 2, 30, 20]), (1, [10, 10, 60, 40])], "sub/b c.png": [], "sub/a.jpg": [(2, [0, 0, 64, 48])]}


def candidates(size, boxes, scores=None, labels=None, masks=None) -> Candidates:
    count = len(boxes)
    columns = zip(boxes, scores or [0.5] * count, labels or [0] * count, masks or [None] * count, strict=True)
    every = [Candidate(label, tuple(box), score, 0.5, mask) for box, score, label, mask in columns]
    return Candidates.of(size, np.ones(2), every, masks is not None)


@pytest.fixture
def pictures(tmp_path: Path) -> list[AnnotatedPicture]:
    made = []
    for number, (name, boxes) in enumerate(BOXES.items(), start=1):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZES[name]).save(path)
        label, corners = [one for one, _ in boxes], [box for _, box in boxes]
        made.append(annotated(name, path, SIZES[name], corners, label, number=number))
    return made


def same(read: Corrections, names: list[str] | None = None, atol: float = 0.5) -> None:
    assert read.problems == {}
    assert sorted(read.pictures) == sorted(BOXES if names is None else names)
    for name, one in read.pictures.items():
        assert one.labels == [label for label, _ in BOXES[name]]
        if one.boxes:
            np.testing.assert_allclose(one.boxes, [box for _, box in BOXES[name]], atol=atol)


def blob(size_wh: tuple[int, int], box: list[float]) -> np.ndarray:
    """An ellipse that touches all sides of a box of whole pixels."""
    y, x = np.mgrid[: size_wh[1], : size_wh[0]] + 0.5
    x0, y0, x1, y1 = box
    return ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1


def written(content: object, path: Path) -> Path:
    path.write_text(json.dumps(content))
    return path


def yolo_of(files: dict[str, str], folder: Path, names: str = "[cat]") -> Path:
    """A set of YOLO's with these text files."""
    (folder / "data.yaml").write_text(f"names: {names}\n")
    for name, text in files.items():
        (folder / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "labels" / name).write_text(text)
    return folder


LEAST = {"coco": 0.93, "labelstudio": 0.8}  # of polygons round small blobs


@pytest.mark.parametrize("name", ["coco", "yolo", "voc", "cvat", "labelstudio"])
def test_masks_of_our_own_exports_come_back(name, pictures, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    masks = {one.name: [blob(one.size_wh, box) for _, box in BOXES[one.name]] for one in pictures}
    with_masks = [replace(one, masks=tuple(rle.encode(mask) for mask in masks[one.name])) for one in pictures]
    export = exports.get(name)
    export.write(lambda: with_masks, ExportSettings(NAMES, "m", "/d/?d=", True), out)
    path = out / export.outputs[0]
    if name == "labelstudio":
        tasks = json.loads(path.read_text())
        for task in tasks:
            task["annotations"] = [{"result": task["predictions"][0]["result"]}]
        path.write_text(json.dumps(tasks))
    read = read_corrections(path, SIZES, LABELS, masks=True)
    same(read, atol=1.0 if name == "labelstudio" else 0.5)
    for one in pictures:
        width, height = one.size_wh
        found = [rle.decode({"size": [height, width], "counts": code}) for code in read.pictures[one.name].masks]
        covered = np.zeros((height, width), bool)
        for mask, true in zip(found, masks[one.name], strict=True):
            seen = true & ~covered if name == "voc" else true  # a pixel of VOC's belongs to one object
            covered |= true
            assert (mask & seen).sum() / (mask | seen).sum() >= LEAST.get(name, 1)
    plain = read_corrections(path, SIZES, LABELS)  # of a run without masks
    assert (plain.problems == {}) == (name in ("coco", "voc"))  # they have a box beside it


def test_a_box_without_a_mask_gets_that_of_the_nearest_draft_inside_it():
    drafts = [blob((60, 40), box) for box in ([0, 0, 20, 20], [30, 10, 60, 40])]
    row = candidates((60, 40), [[0, 0, 20, 20], [30, 10, 60, 40]], masks=[rle.encode(one)["counts"] for one in drafts])
    boxes = [[0, 0, 20, 20.5], [0, 0, 10, 20], [21, 0, 29, 9]]
    same, half, other = (
        rle.decode({"size": [40, 60], "counts": code})
        for code in with_masks(Correction(boxes, [0] * 3, [None] * 3), row).masks
    )
    assert (same == drafts[0]).all()
    assert (half[:, :10] == drafts[0][:, :10]).all()
    assert (half.sum(), other.sum()) == (drafts[0][:, :10].sum(), 8 * 9)


def test_what_supervision_writes(pictures, tmp_path):
    """It writes base names: those that are there once are found by them, the others are named."""
    paths = {str(one.path): one for one in pictures if one.name != "sub/a.jpg"}
    found = {
        path: supervision.Detections(one.xyxy, class_id=one.label.astype(int)) if len(one.label)
        else supervision.Detections(np.zeros((0, 4)), class_id=np.zeros(0, int))
        for path, one in paths.items()
    }  # fmt: skip
    data = supervision.DetectionDataset(list(NAMES), list(paths), found)
    data.as_coco(annotations_path=str(tmp_path / "coco.json"))
    data.as_yolo(
        annotations_directory_path=str(tmp_path / "yolo/labels"), data_yaml_path=str(tmp_path / "yolo/data.yaml")
    )
    data.as_pascal_voc(annotations_directory_path=str(tmp_path / "voc"))
    sizes = {name: size for name, size in SIZES.items() if name != "sub/a.jpg"}
    for path in ("coco.json", "yolo", "yolo/data.yaml", "voc"):
        same(read_corrections(tmp_path / path, sizes, LABELS), ["a.jpg", "sub/b c.png"])
    without_root = {name: size for name, size in SIZES.items() if name != "a.jpg"} | {"top/a.jpg": (60, 40)}
    doubtful = read_corrections(tmp_path / "coco.json", without_root, LABELS)
    assert doubtful.problems == {"a.jpg": "it may be sub/a.jpg or top/a.jpg: give its path"}
    assert list(doubtful.pictures) == ["sub/b c.png"]


def task(image: str, results: list[dict] | None, **more: object) -> dict:
    done = [] if results is None else [{"result": results, "was_cancelled": False}]
    return {"data": {"image": image}, "annotations": done, "predictions": [{"result": [{"not": "read"}]}], **more}


def rectangle(label: str, xyxy: list[float], size: tuple[int, int], **more: object) -> dict:
    (x0, y0, x1, y1), (width, height) = xyxy, size
    place = {"x": 100 * x0 / width, "y": 100 * y0 / height, "rotation": 0}
    value = {**place, "width": 100 * (x1 - x0) / width, "height": 100 * (y1 - y0) / height, "rectanglelabels": [label]}
    existing = {"original_width": width, "original_height": height}
    return {"type": "rectanglelabels", "value": {**value, **more}, **existing}


def of(name: str) -> list[dict]:
    return [rectangle(NAMES[label], box, SIZES[name]) for label, box in BOXES[name]]


def test_label_studio_by_address_by_upload_and_only_what_somebody_has_looked_at(tmp_path):
    tasks = [
        task("/data/local-files/?d=sub/a.jpg", [*of("sub/a.jpg"), {"type": "number", "value": {"number": 3}}]),
        task("https://host/photos/sub/b%20c.png", of("sub/b c.png")),
        task("/data/local-files/?d=other/e.jpg", None),
        {**task("/data/upload/1/0123abcd-e.jpg", []), "annotations": [{"result": [], "was_cancelled": True}]},
    ]
    tasks += [{**task("", of("a.jpg")), "data": {"image": "s3://bucket/x.jpg", "path": "a.jpg"}}]
    same(read_corrections(written(tasks, tmp_path / "tasks.json"), SIZES, LABELS))
    upload = [task("/data/upload/1/0123abcd-e.jpg", [])]
    read = read_corrections(written(upload, tmp_path / "upload.json"), SIZES, LABELS)
    assert read.pictures["other/e.jpg"].boxes == []


def test_label_studios_exports_in_other_formats(tmp_path):
    """As version 1.23.2 writes them: `classes.txt` instead of `data.yaml`, and in VOC's a prefix before each name."""
    sizes = {"b c.png": (10, 8)}
    yolo, voc = tmp_path / "yolo", tmp_path / "voc"
    for folder in (yolo / "labels", voc / "Annotations"):
        folder.mkdir(parents=True)
    (yolo / "classes.txt").write_text("cat\ndog\n")
    (yolo / "labels/b c.txt").write_text("1 0.5 0.5 0.6 0.5\n")
    (voc / "Annotations/0192531e__b c.xml").write_text(
        "<annotation><filename>0192531e__b c.png</filename><size><width>10</width><height>8</height></size><object>"
        "<name>dog</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>8</xmax><ymax>6</ymax></bndbox></object></annotation>"
    )
    for path in (yolo, yolo / "classes.txt", voc):
        read = read_corrections(path, sizes, [["cat"], ["dog"]])
        assert (read.problems, list(read.pictures)) == ({}, ["b c.png"])
        assert read.pictures["b c.png"].boxes == [[2, 2, 8, 6]]
        assert read.pictures["b c.png"].labels == [1]


def test_a_split_of_yolos_layout_is_no_folder_of_the_pictures(tmp_path):
    """As Ultralytics has them; FiftyOne writes `dataset.yaml`, and names without folders."""
    line = "0 0.5 0.5 0.5 0.5\n"
    yolo_of({"train/a.txt": line, "train2017/x/b.txt": line, "valid/c.txt": line, "dogs/a.txt": line}, tmp_path)
    (tmp_path / "data.yaml").rename(tmp_path / "dataset.yaml")
    sizes = dict.fromkeys(("a.jpg", "x/b.jpg", "y/b.jpg", "y/c.jpg"), (10, 8))
    read = read_corrections(tmp_path, sizes, [["cat"]])
    assert (sorted(read.pictures), list(read.problems)) == (["a.jpg", "x/b.jpg", "y/c.jpg"], ["dogs/a"])


@pytest.mark.parametrize("path", ["/home/me/photos/{}", "C:\\photos\\{}", None])
def test_voc_files_of_pictures_with_the_same_name_are_told_apart(path, tmp_path):
    """As LabelImg writes them beside the pictures, with the whole path of each, or by where they lie."""
    sizes = dict.fromkeys(("a.jpg", "sub/a.jpg", "x/b.jpg", "y/b.jpg", "y/c.jpg"), (10, 8))
    for number, name in enumerate(sizes):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        written_path = "" if path is None else f"<path>{path.format(name)}</path>"
        file.with_suffix(".xml").write_text(
            f"<annotation><folder>{file.parent.name}</folder><filename>{file.name}</filename>{written_path}<object>"
            f"<name>cat</name><bndbox><xmin>{1 + number}</xmin><ymin>1</ymin><xmax>8</xmax><ymax>6</ymax></bndbox>"
            "</object></annotation>"
        )
    more = {**sizes, "y/c.png": (10, 8)}  # has no file, and the same place but for its ending
    read = read_corrections(tmp_path, more, [["cat"]])
    left = {name: one.boxes[0][0] for name, one in read.pictures.items()}
    assert (left, read.problems) == ({name: number for number, name in enumerate(sizes)}, {})
    elsewhere = (tmp_path / "y/c.xml").read_text().replace("/y/", "/z/")
    (tmp_path / "y/c.xml").write_text(elsewhere)
    assert "y/c.jpg" in read_corrections(tmp_path, sizes, [["cat"]]).pictures


def test_a_stem_with_a_dot_is_not_the_picture_of_the_part_before_it(tmp_path):
    """A set of another tool has no list of files: the name of a text file is all that it says."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.txt").write_text("cat\n")
    for stem in ("photo.1", "clip.2_120", "b.png"):
        (tmp_path / f"labels/{stem}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    sizes = dict.fromkeys(("photo.jpg", "photo.1.jpg", "clip.jpg", "clip.2#120.jpg", "b.jpg"), (10, 8))
    read = read_corrections(tmp_path, sizes, [["cat"]])
    assert (sorted(read.pictures), read.problems) == (["b.jpg", "clip.2#120.jpg", "photo.1.jpg"], {})


@pytest.mark.parametrize(
    ("written_labels", "labels", "meant"),
    [
        (("Kitten", "CAT", "dog"), LABELS, [0, 0, 2]),  # a label goes before a synonym
        (("Apple", "apple", "APPLE", "pet", "Pet"), (["Apple"], ["apple"], ["dog", "Pet"], ["cat", "pet", "Apple"]),
         [0, 1, 1, 3, 2]),  # labels may differ in capital letters only
    ],
)  # fmt: skip
def test_a_label_may_be_a_synonym_in_other_letters(written_labels, labels, meant, tmp_path):
    boxes = [rectangle(name, [1, 1, 9, 9], SIZES["a.jpg"]) for name in written_labels]
    read = read_corrections(written([task("a.jpg", boxes)], tmp_path / "tasks.json"), SIZES, labels)
    assert read.pictures["a.jpg"].labels == meant


def drawn(kind: str, **value: object) -> dict[str, object]:
    """A shape of another kind, of a cat."""
    return {"type": kind, "value": {kind: ["cat"], **value}}


NOT_TAKEN = [
    (rectangle("bird", [1, 1, 9, 9], (60, 40)), "'bird' is not a label of this run"),
    (rectangle("cat", [70, 1, 90, 9], (60, 40)), "a box of 'cat' is empty, or lies outside"),
    (rectangle("cat", [1, 1, 1.004, 9], (60, 40)), "a box of 'cat' is empty, or lies outside"),
    (rectangle("cat", [1, 1, 9, 9], (60, 40), rotation=30), "a rotated rectangle, not a box"),
    (rectangle("cat", [1, 1, 9, 9], (40, 60)), "it is 40×60 in the set, but was annotated at 60×40"),
    ({"type": "rectanglelabels", "value": {}}, "(rectanglelabels is missing): export the set again"),
    ({"type": "rectanglelabels", "value": None}, "(a value has the wrong form): export the set again"),
    (drawn("rectanglelabels", rectanglelabels=["cat", "dog"]), "a shape in it has 2 labels, not one"),
    (drawn("polygonlabels", points=[[0, 0], [9, 9]]), "cannot be read as Label Studio's (expected polygons"),
    (drawn("polygonlabels", points=[[0, 0], [9, 9], [0, 0]]), "is empty"),
    (drawn("brushlabels", rle=[0]), "is brushlabels, not a box"),
    (drawn("ellipselabels"), "is ellipselabels, not a box"),
]


@pytest.mark.parametrize(("shape", "message"), NOT_TAKEN)
def test_what_cannot_be_taken_is_named_and_its_picture_left_as_it_is(shape, message, tmp_path):
    path = written([task("a.jpg", [shape]), task("sub/a.jpg", of("sub/a.jpg"))], tmp_path / "tasks.json")
    read = read_corrections(path, SIZES, LABELS, masks=shape["type"] != "rectanglelabels")
    assert list(read.pictures) == ["sub/a.jpg"]
    assert list(read.problems) == ["a.jpg"]
    assert message in read.problems["a.jpg"]


def test_another_entry_of_a_task_is_not_the_name_of_its_picture():
    tasks = [task("/data/upload/3/1a2b3c4d-a.jpg", [rectangle("cat", [1, 2, 30, 20], (60, 40))])]
    tasks[0]["data"]["id"] = "12"
    assert [*read_corrections(tasks, {"a.jpg": (60, 40), "12.jpg": (60, 40)}, LABELS).pictures] == ["a.jpg"]


def test_masks_of_a_run_without_them_names_of_no_picture_and_two_entries_of_one_are_named(tmp_path):
    shape = drawn("polygonlabels", points=[[0, 0], [50, 0], [50, 50]])
    tasks = [task("a.jpg", [shape]), task("x/none.jpg", [])]
    tasks += [task("sub/a.jpg", of("sub/a.jpg")), task("/data/local-files/?d=sub/a.jpg", [])]
    read = read_corrections(written(tasks, tmp_path / "tasks.json"), SIZES, LABELS)
    assert read.pictures == {}
    assert read.problems == {
        "a.jpg": "a shape in it is a polygon, not a box",
        "x/none.jpg": "no annotated picture of this run has this name",
        "/data/local-files/?d=sub/a.jpg": "several pictures of the set match sub/a.jpg",
    }


@pytest.mark.parametrize(
    ("xyxy", "polygon", "pixels"),
    [
        ([1, 9.6, 3, 10], None, 2),  # nearer to the picture's border than half a pixel
        ([7.5, 0, 8, 10], None, 10),
        ([2, 3, 4, 6], [2.1, 3.1, 2.3, 3.1, 2.2, 3.3], 6),  # between the centres of pixels
        ([0, 2, 1, 6], [0, 2, 0, 6, 0, 4], 4),  # dragged out of the picture
    ],
)
def test_every_reviewed_box_has_a_pixel_in_its_mask(xyxy, polygon, pixels):
    """YOLO's lines are made of masks: a box without pixels would not be among them."""
    row = candidates((8, 10), [], masks=[])
    box = ReviewedBox(tuple(xyxy), 0, polygons=None if polygon is None else [[polygon]])
    (counts,) = correction_of([box], row, 1).masks
    assert rle.decode({"size": [10, 8], "counts": counts}).sum() == pixels


def test_a_reviewed_box_thinner_than_what_is_kept_is_refused():
    row = candidates((8, 10), [])
    with pytest.raises(UnusableError, match="with a width and a height above 0"):
        correction_of([ReviewedBox((1, 5.001, 3, 5.004), 0)], row, 1)


@pytest.mark.parametrize(
    ("number", "message"), [("draft", "drafts below 1, got 1"), ("label", "labels below 1, got 1")]
)
def test_a_reviewed_box_is_of_a_draft_and_a_label_that_are_there(number, message):
    row = candidates((8, 10), [[1, 1, 3, 3]])
    box = ReviewedBox((1, 1, 3, 3), 0, 0)
    assert correction_of([box], row, 1).drafts == [0]
    with pytest.raises(UnusableError, match=message):
        correction_of([msgspec.structs.replace(box, **{number: 1})], row, 1)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.csv", "path,name\n"),
        ("a.csv", "path,label,x0,y0,x1,y1\nc.jpg,cat,1,2,3,wide\n"),
        ("a.json", '{"images": [{"id": 1}], "categories": [], "annotations": [{"image_id": 1, "bbox": [1, 2]}]}'),
        ("a.json", '{"a": 1}'),
        ("a.json", '{"images": [{}], "annotations": [], "categories": []}'),
        ("a.json", '{"images": [{"id": 1}, {"id": 1}], "categories": [], "annotations": []}'),
        ("a.xml", "<a/>"),
        ("a.xml", '<annotations><track label="cat"></track></annotations>'),
        ("folder/a.txt", ""),
        ("folder/data.yaml", "names: [cat]"),
        ("folder/data.yaml", "a: &a [x]\nnames: [*a, *a]\n"),
        ("folder/data.yaml", "names: " + "[" * 50_000),
        ("folder/data.yaml", "names: [cat\n\t- :"),
        ("folder/a.xml", "<a/>"),
    ],
)
def test_files_that_are_no_corrected_set(file, content, tmp_path):
    """Also small ones that mean endless ones."""
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    path = path if "/" not in file else path.parent
    for place in (path, tmp_path / "none.json"):
        with pytest.raises(UsageError) as error:
            read_corrections(place, SIZES, LABELS)
        check_refusal(str(error.value), place)


# ------------------------------------------------------------------------------------------------------------- scores
def drafted(boxes: list, scores: list, labels: list, true: list, true_labels: list) -> tuple[dict, Correction]:
    return candidates((1000, 1000), boxes, scores, labels), Correction(true, true_labels)


box = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 6)] * 2).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)
drafts = st.lists(st.tuples(box, st.sampled_from([0.2, 0.4, 0.9]), st.integers(0, 1)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(drafts, st.lists(st.tuples(box, st.integers(0, 1)), max_size=8)), max_size=4))
def test_scores_by_plain_loops(data):
    pairs = [
        drafted([b for b, _, _ in d], [s for _, s, _ in d], [i for *_, i in d], [b for b, _ in t], [i for _, i in t])
        for d, t in data
    ]
    every, labels = score_drafts(pairs, 2)
    for label in range(2):
        right: list[tuple[float, bool]] = []
        for d, t in data:
            left = [b for b, i in t if i == label]
            for corner, score, _ in sorted((one for one in d if one[2] == label), key=lambda one: -one[1]):
                fits = [float(iou_matrix([corner], [b])[0, 0]) for b in left]
                if fits and max(fits) >= 0.5:
                    left.pop(fits.index(max(fits)))
                    right.append((score, True))
                else:
                    right.append((score, False))
        true = sum(i == label for _, t in data for _, i in t)
        assert labels[label] == LabelScore(len(right), true, sum(hit for _, hit in right))
    assert every == LabelScore(*(sum(figures) for figures in zip(*map(astuple, labels), strict=True)))


def test_a_draft_is_right_from_an_iou_of_one_half_on():
    complete, half = [[0, 0, 10, 10]], [[0, 0, 10, 5]]
    assert score_drafts([drafted(complete, [0.9], [0], half, [0])], 1)[0].right == 1
    assert work_on(complete, half) == Work(delete=0, draw=0, adjust=1)


VOC = (
    "<annotation><filename>{}</filename><size><width>{}</width><height>20</height></size><object><name>cat</name>"
    "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>{}</xmax><ymax>8</ymax></bndbox></object></annotation>"
)


@pytest.mark.parametrize("number", ["inf", "nan", "1e999", "9" * 400, "0x1"])
@pytest.mark.parametrize("content", [VOC.format("e.jpg", "{}", 9), VOC.format("e.jpg", 20, "{}"), "{}"])
def test_a_bad_voc_file_beside_a_good_one_is_one_problem(content, number, tmp_path):
    (tmp_path / "a.xml").write_text(VOC.format("a.jpg", 60, 9).replace("20</height>", "40</height>"))
    (tmp_path / "e.xml").write_text(content.format(number))
    found = read_corrections(tmp_path, SIZES, LABELS)
    assert found.pictures.keys() == {"a.jpg"}
    [message] = found.problems.values()
    assert len(message) < 300
    assert "\n" not in message


def test_names_of_yolo_are_texts(tmp_path):
    """YAML's own reading makes True of yes, and 7 of 007."""
    yolo_of({"e.txt": "".join(f"{i} 0.5 0.5 0.2 0.2\n" for i in range(3))}, tmp_path, "[yes, 007, 'a: b']")
    found = read_corrections(tmp_path, SIZES, [("007",), ("a: b",), ("yes",)])
    assert found.pictures["other/e.jpg"].labels == [2, 0, 1]


# ----------------------------------------------------------------------------------------------------- corrections tool
UNTAUGHT = np.array([[0, 3, 0], [0, 1, 0], [0, 2, 0]], float)  # to delete, draw and adjust in three pictures
LEFT = [[True, False], [True, True], [True, True]], [[True, True], [True, False], [True, True]]
TAUGHT = (
    [[[2, 0, 0], [9, 9, 9]], [[1, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0]]],  # what is reviewed does not count
    [[[2, 0, 0], [0, 1, 0]], [[1, 0, 0], [9, 9, 9]], [[0, 0, 0], [0, 0, 0]]],
)


def test_numbers_by_hand() -> None:
    walks = [Walk(np.array(left), np.array(taught, float)) for left, taught in zip(LEFT, TAUGHT, strict=True)]
    first, last = (numbers_of(UNTAUGHT, walks, step) for step in (0, 1))
    assert (first["left"], last["left"]) == (3, 2)
    assert (first["untaught"], last["untaught"]) == pytest.approx((200, 200))  # b and c, then a and c: 1 + 2 + 3 + 2
    assert (first["taught"], last["taught"]) == pytest.approx((100, 50))
    assert (first["saved"], last["saved"]) == pytest.approx((100, 150))
    assert (first["delete"], last["draw"]) == pytest.approx((100, 50))
    assert (first["minutes_low"], last["minutes_high"]) == pytest.approx((100 * 7 / 60, 50 * 35 / 60))
    # Saved at first: a 1, b 0, c 2 in both draws. Then a 2; b 1; c 1 and 2; in the first draw 1 and 1, then 2 and 2.
    assert first["saved_error"] == pytest.approx(100 * math.sqrt(np.var([1, 0, 2], ddof=1) / 3))
    variance = np.var([2, 1, 1.5], ddof=1) / 3 + np.var([1, 2], ddof=1) / 2
    assert last["saved_error"] == pytest.approx(100 * math.sqrt(variance))
    alone = numbers_of(UNTAUGHT[:1], [Walk(np.array([[True]]), np.array([[[2.0, 0, 0]]]))], 0)
    assert alone["saved_error"] is None
