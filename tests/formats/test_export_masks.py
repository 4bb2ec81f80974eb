"""Masks of each format, read back by a reader that is not ours, or by the format's definition: IoU of 0.99 or more."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from cliploc.formats import AnnotatedPicture, ExportSettings, exports
from cliploc.formats.voc import palette
from cliploc.images import rle
from cliploc.label.corrections import read_corrections
from tests.label.annotated import annotated, written

NAMES = ("traffic light", "a: b", "猫")
SIZE = (160, 120)  # width and height
SETTINGS = ExportSettings(NAMES, "cliploc mini cam", "/data/", masks=True)


def shapes() -> list[np.ndarray]:
    """A disc, one with a hole, one in pieces that touches the border, one pixel, and a ragged blob."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    disc = (x - 50) ** 2 + (y - 60) ** 2 < 35**2
    ring = disc & ((x - 45) ** 2 + (y - 55) ** 2 > 14**2)
    pieces = (x > 140) & (y < 60) | (x > 120) & (y > 90)
    pixel = (x == 100) & (y == 3)
    noise = np.random.default_rng(0).random(SIZE[::-1], dtype=np.float32)
    blob = cv2.GaussianBlur(noise, (0, 0), 9)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((blob > np.quantile(blob, 0.6)).astype(np.uint8))
    return [disc, ring, pieces, pixel, labels == 1 + stats[1:, 4].argmax()]


@pytest.fixture
def picture(tmp_path) -> AnnotatedPicture:
    path = tmp_path / "root" / "a.png"
    path.parent.mkdir()
    Image.new("RGB", SIZE).save(path)
    masks = shapes()
    boxes = []
    for mask in masks:
        y, x = np.nonzero(mask)
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    label, codes = np.arange(len(masks)) % len(NAMES), tuple(rle.encode(mask) for mask in masks)
    return annotated("a.png", path, SIZE, boxes, label, np.linspace(0.9, 0.3, len(masks)), masks=codes)


def export(name: str, picture: AnnotatedPicture, out: Path, settings: ExportSettings = SETTINGS) -> list[Path]:
    return written(name, [picture, annotated("empty.png", picture.path, SIZE, number=2)], settings, out)


def alike(found: list[tuple[str, np.ndarray]], picture: AnnotatedPicture, least: float = 0.99) -> None:
    assert [name for name, _ in found] == [NAMES[label] for label in picture.label]
    for (_, mask), code in zip(found, picture.masks, strict=True):
        true, read = rle.decode(code), np.asarray(mask, bool)
        assert (true & read).sum() / (true | read).sum() >= least


def test_coco_as_pycocotools_reads_it(picture, tmp_path):
    from pycocotools.coco import COCO

    (path,) = export("coco", picture, tmp_path / "out")
    read = COCO(str(path))
    anns = read.loadAnns(read.getAnnIds(imgIds=[1]))
    alike([(read.cats[one["category_id"]]["name"], read.annToMask(one)) for one in anns], picture)
    assert [one["area"] for one in anns] == [rle.decode(code).sum() for code in picture.masks]
    holes = [False, True, False, False, None]  # a mask with a hole is run lengths
    for one, hole in zip(anns, holes, strict=True):
        if hole is not None:
            assert isinstance(one["segmentation"], list) != hole


def test_yolo_by_its_definition(picture, tmp_path):
    """Ultralytics: more than six values are a polygon, whose corners are rounded down and which is filled."""
    (root,) = export("yolo", picture, tmp_path / "out")
    names = yaml.safe_load((root / "data.yaml").read_text(encoding="utf-8"))["names"]
    found = []
    for line in (root / "labels/a.txt").read_text().splitlines():
        label, *values = line.split()
        assert len(values) >= 6
        corners = np.array(values, float).reshape(-1, 2)
        assert (corners >= 0).all()
        assert (corners <= 1).all()
        canvas = np.zeros(SIZE[::-1], np.uint8)
        cv2.fillPoly(canvas, [(corners * SIZE).astype(np.int32)], 1)
        found.append((names[int(label)], canvas))
    alike(found, picture, least=0.98)  # one line a pixel wide joins the pieces


def test_cvat_by_its_definition(picture, tmp_path):
    """Run lengths row by row in the mask's rectangle, beginning with 0."""
    (path,) = export("cvat", picture, tmp_path / "out")
    found = []
    for one in ET.parse(path).getroot().find("image").findall("mask"):
        left, top, width, height = (int(one.get(key)) for key in ("left", "top", "width", "height"))
        flat, value = [], 0
        for count in one.get("rle").split(","):
            flat += [value] * int(count)
            value = 1 - value
        canvas = np.zeros(SIZE[::-1], bool)
        canvas[top : top + height, left : left + width] = np.reshape(flat, (height, width))
        found.append((one.get("label"), canvas))
    alike(found, picture, least=1.0)
    assert not ET.parse(path).getroot().findall("image/box")


def test_labelstudio_by_its_definition(picture, tmp_path):
    """Corners in percent of the picture, filled by even and odd."""
    tasks, config = export("labelstudio", picture, tmp_path / "out")
    result = json.loads(tasks.read_text())[0]["predictions"][0]["result"]
    tag = ET.parse(config).getroot().find("PolygonLabels")
    assert [one.get("value") for one in tag] == list(NAMES)
    found = []
    for one in result:
        assert (one["type"], one["from_name"], one["to_name"]) == ("polygonlabels", tag.get("name"), tag.get("toName"))
        corners = np.array(one["value"]["points"]) / 100 * SIZE
        fine = np.zeros((8 * SIZE[1], 8 * SIZE[0]), np.uint8)
        cv2.fillPoly(fine, [np.round(8 * corners).astype(np.int32)], 1)
        middles = fine[4::8, 4::8]
        found.append((one["value"]["polygonlabels"][0], middles))
    alike(found, picture, least=0.95)


def test_voc_as_pillow_reads_it(picture, tmp_path):
    (root,) = export("voc", picture, tmp_path / "out")
    objects = Image.open(root / "SegmentationObject/a.png")
    classes = Image.open(root / "SegmentationClass/a.png")
    assert (objects.mode, classes.mode) == ("P", "P")
    table = np.reshape(classes.getpalette()[:768], (-1, 3))
    assert table.tolist() == palette()[: len(table)].tolist()
    lines = (root / "labelmap.txt").read_text(encoding="utf-8").splitlines()
    assert lines[1:3] == ["background:0,0,0::", "traffic light:128,0,0::"]
    assert lines[3] == "a_ b:0,128,0::"
    xml = ET.parse(root / "Annotations/a.xml").getroot()
    assert xml.findtext("segmented") == "1"
    assert len(xml.findall("object")) == len(picture.masks)
    for subset in ("Main", "Segmentation"):
        assert (root / "ImageSets" / subset / "trainval.txt").read_text() == "a\nempty\n"
    covered = np.zeros(SIZE[::-1], bool)
    for i, code in enumerate(picture.masks):
        seen = rle.decode(code) & ~covered  # a better one covers it
        covered |= seen
        assert ((np.asarray(objects) == i + 1) == seen).all()
        assert (np.asarray(classes)[seen] == picture.label[i] + 1).all()
    assert (np.asarray(classes)[~covered] == 0).all()
    assert not np.asarray(Image.open(root / "SegmentationObject/empty.png")).any()


def test_voc_objects_that_have_no_number_are_void(tmp_path):
    path, size, count = tmp_path / "a.png", (20, 15), 256
    Image.new("RGB", size).save(path)
    places = [(i % 20, i // 20) for i in range(count)]
    masks = np.zeros((count, size[1], size[0]), bool)
    for i, (x, y) in enumerate(places):
        masks[i, y, x] = True
    boxes, codes = [[x, y, x + 1, y + 1] for x, y in places], tuple(rle.encode(mask) for mask in masks)
    label = np.arange(count) % len(NAMES)
    crowded = annotated("a.png", path, size, boxes, label, np.linspace(0.9, 0.3, count), masks=codes)
    (root,) = export("voc", crowded, tmp_path / "out")
    with Image.open(root / "SegmentationObject/a.png") as objects:
        objects = np.asarray(objects)
    assert [objects[y, x] for x, y in places] == [*range(1, 255), 255, 255]
    (again,) = read_corrections(root, {"a.png": size}, [(name,) for name in NAMES], masks=True).pictures.values()
    assert [one is None for one in again.masks] == [False] * 254 + [True] * 2


@pytest.mark.parametrize("name", exports.names())
def test_without_masks_nothing_of_them_is_export(name, picture, tmp_path):
    export(name, replace(picture, masks=()), tmp_path / "out", replace(SETTINGS, masks=False))
    text = b"".join(one.read_bytes() for one in (tmp_path / "out").rglob("*") if one.is_file() and one.suffix != ".png")
    assert b"rle" not in text
    assert b"segmented>1" not in text
