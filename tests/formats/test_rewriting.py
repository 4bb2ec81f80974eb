"""A set goes out in the format it came in: what is not edited stays, also what we do not understand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest

from cliploc.errors import UsageError
from cliploc.formats import Edit, PictureEdits
from cliploc.formats.reading import read_labels

SIZE = (40, 20)
BOXES = [("cat", [1, 2, 21, 12]), ("dog", [4, 4, 14, 14])]


class Source(NamedTuple):
    """A set of two pictures, the second without boxes, in a format."""

    files: dict[str, str]  # the first is given to the reader; of a folder of files, each
    edited: str  # the file with the boxes of the first picture
    change: tuple[str, str]  # what is another text there once the first box is a dog
    parsed: Callable[[str], Any] = str

    def write(self, folder: Path) -> Path:
        for name, text in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(text.encode())
        return folder if len(self.files) > 1 else folder / next(iter(self.files))


def canonical(text: str) -> str:
    return ElementTree.canonicalize(text, with_comments=True)


COCO = """{
  "info": {"year": 2017, "x": 1.50},
  "licenses": [], "categories": [{"id": 7, "name": "cat", "supercategory": "animal"}, {"id": 3, "name": "dog"}],
  "images": [{"id": "p", "file_name": "a.jpg", "width": 40, "height": 20, "flickr": null},
    {"id": 9, "file_name": "b.jpg"}],
  "annotations": [
    {"id": 12, "image_id": "p", "category_id": 7, "bbox": [1, 2, 20, 10], "area": 99.5, "mine": {"by": "Zoë"}},
    {"id": "u", "image_id": 77, "category_id": 7, "bbox": [1, 2, 20, 10], "note": "of no picture"},
    {"id": 15, "image_id": "p", "category_id": 3, "bbox": [4, 4, 10, 10], "segmentation": [[4, 4, 14, 4, 14, 14]]}]
}"""
VOC = """<annotation verified="yes"><!-- by hand --><filename>{}.jpg</filename>
  <size><width>40</width><height>20</height></size>{}</annotation>"""
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><!-- mine -->
  <meta><task><labels><label><name>cat</name><attribute/></label><label><name>dog</name></label></labels></task></meta>
  <image id="4" name="a.jpg" width="40" height="20" subset="x"><tag label="dog" source="manual"/>
    <box label="cat" xtl="1.000" ytl="2" xbr="21" ybr="12" occluded="1"><attribute name="age">3</attribute></box>
    <polygon label="dog" points="4,4;14,4;14,14" z_order="5"/></image>
  <image id="5" name="b.jpg" width="40" height="20"/></annotations>"""
TASKS = """[
  {"id": 1, "data": {"image": "s3://c.jpg"}},
  {"id": 2, "meta": {"a": 1}, "data": {"image": "/data/a.jpg"}, "annotations": [
    {"id": 5, "result": [], "updated_at": "2024"},
    {"id": 6, "updated_at": "2025", "result": [
      {"type": "choices", "value": {"choices": ["day"]}},
      {"id": "k", "type": "rectanglelabels", "from_name": "box", "to_name": "img", "origin": "manual",
        "value": {"x": 2.5, "y": 10, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["cat"]}},
      {"type": "polygonlabels", "from_name": "poly", "to_name": "img",
        "value": {"points": [[10, 20], [35, 20], [35, 70], [10, 70]], "polygonlabels": ["dog"]}}]}]},
  {"id": 3, "data": {"image": "/data/b.jpg"}, "annotations": [{"result": []}]}
]"""
OBJECTS = """
  <object><name>cat</name><pose>Left</pose><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>21</xmax><ymax>12</ymax></bndbox></object>
  <object><name>dog</name><part><name>head</name></part><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>14</xmax><ymax>14</ymax></bndbox></object>
"""
TABLE = """path,score, label,x0,y0,x1,y1,"no\nte"\r
a.jpg,0.5,cat,1.0,2,21,12,mine\r
a.jpg,,dog,4,4,14,14,\r
b.jpg,,,,,,,"""
YOLO = {
    "data.yaml": "names: [cat, dog]  # mine\n",
    "labels/a.txt": "0 0.275 0.35 0.5 0.5000\r\n\r\n1 0.1 0.2 0.35 0.2 0.35 0.7 0.1 0.7",
    "labels/b.txt": "",
}
VOC_FILES = {"Annotations/a.xml": VOC.format("a", OBJECTS), "Annotations/b.xml": VOC.format("b", "")}
SOURCES = {
    "coco": Source({"set.json": COCO}, "set.json", ('"category_id": 7', '"category_id": 3'), json.loads),
    "labelstudio": Source({"set.json": TASKS}, "set.json", ('["cat"]', '["dog"]'), json.loads),
    "cvat": Source({"set.xml": CVAT}, "set.xml", ('box label="cat"', 'box label="dog"'), canonical),
    "csv": Source({"set.csv": TABLE}, "set.csv", (",cat,", ",dog,")),
    "yolo": Source(YOLO, "labels/a.txt", ("0 0.275", "1 0.275")),
    "voc": Source(VOC_FILES, "Annotations/a.xml", (">cat<", ">dog<"), canonical),
}


def again(
    source: Source, folder: Path, edits: PictureEdits | None
) -> tuple[dict[str, str], list[tuple[str, list[float]]]]:
    """The files after edits of the first picture, and the boxes that are read in it then."""
    (folder / "before").mkdir()
    labels = read_labels(source.write(folder / "before"))
    texts = {}
    for file, content in labels.rewritten({} if edits is None else {0: edits}):
        name = file.relative_to(folder / "before").as_posix()
        texts[name] = content.decode()
    after = Source(texts, *source[1:]).write(folder / "after")
    boxes = read_labels(after).pictures[0].boxes(SIZE, False)
    return texts, [(box.name, list(box.xyxy)) for box in boxes]


def check_boxes(found: list[tuple[str, list[float]]], expected: list[tuple[str, list[float]]]) -> None:
    assert [name for name, _ in found] == [name for name, _ in expected]
    np.testing.assert_allclose([xyxy for _, xyxy in found], [xyxy for _, xyxy in expected], atol=1e-3)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_set_without_edits_is_the_same_to_the_byte(source: Source, tmp_path: Path) -> None:
    texts, found = again(source, tmp_path, None)
    assert texts == source.files
    check_boxes(found, BOXES)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_another_name_changes_nothing_else(source: Source, tmp_path: Path) -> None:
    texts, _ = again(source, tmp_path, PictureEdits(SIZE, {0: Edit("dog")}))
    changed = source.files[source.edited].replace(*source.change, 1)
    assert changed != source.files[source.edited]
    expected = {**source.files, source.edited: changed}
    assert {name: source.parsed(text) for name, text in texts.items() if text} == {
        name: source.parsed(text) for name, text in expected.items() if text
    }


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_boxes_are_moved_dropped_and_added(source: Source, tmp_path: Path) -> None:
    edits = PictureEdits(SIZE, {0: None, 1: Edit(None, (6, 5, 16, 15))}, [("cat", (0, 0, 40, 20))])
    _, found = again(source, tmp_path, edits)
    check_boxes(found, [("dog", [6, 5, 16, 15]), ("cat", [0, 0, 40, 20])])


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_picture_keeps_its_place_without_boxes_and_gets_its_first_one(source: Source, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    texts, found = again(source, tmp_path / "one", PictureEdits(SIZE, {0: None, 1: None}))
    assert found == []
    (tmp_path / "two").mkdir()
    _, found = again(Source(texts, *source[1:]), tmp_path / "two", PictureEdits(SIZE, {}, [("dog", (1, 2, 5, 6))]))
    check_boxes(found, [("dog", [1, 2, 5, 6])])


def test_a_name_that_the_set_does_not_list(tmp_path: Path) -> None:
    edits = PictureEdits(SIZE, {0: Edit("emu")})
    for name in ("coco", "cvat", "yolo"):
        (tmp_path / name).mkdir()
    texts, _ = again(SOURCES["coco"], tmp_path / "coco", edits)
    assert json.loads(texts["set.json"])["categories"][-1] == {"id": 8, "name": "emu"}
    texts, _ = again(SOURCES["cvat"], tmp_path / "cvat", edits)
    assert "<name>emu</name>" in texts["set.xml"]
    with pytest.raises(UsageError, match="list of classes, got 'emu': add it"):
        again(SOURCES["yolo"], tmp_path / "yolo", edits)
