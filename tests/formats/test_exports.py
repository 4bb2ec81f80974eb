"""Each format, read back by a reader that is not ours: equal, or to half a pixel; and what every one must do."""

import csv
import dataclasses
import json
import tempfile
import unicodedata
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from cliploc.formats import (
    AnnotatedPicture,
    ExportSettings,
    FileNames,
    LabelledBox,
    chosen_exports,
    exports,
    pictures_of,
)
from cliploc.formats.reading import PictureFinder, read_labels
from cliploc.formats.voc import palette
from cliploc.images import rle
from cliploc.images.reading import load
from cliploc.label.corrections import read_corrections
from tests.label.annotated import annotated, written

NAMES = ("traffic light", 'a "large", red cat', "猫 & <кот>", "yes")
PATHS = (
    "plain.jpg", "plain.png", 'sub folder/a, "b" & <c>\'d.jpg', "sub folder/猫é.jpg", "../beside/plain.jpg",
    "images/roboflow.ai.jpg",
)  # fmt: skip
SETTINGS = ExportSettings(NAMES, "cliploc mini cam", "/data/local-files/?d=")


@pytest.fixture
def pictures(tmp_path) -> list[AnnotatedPicture]:
    """Real files of an odd size, one of them stored sideways; boxes at edges and at fractions of pixels."""
    rng = np.random.default_rng(5)
    made = []
    for number, name in enumerate(PATHS, start=1):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = Image.fromarray(rng.integers(0, 255, (37, 61, 3), dtype=np.uint8))
        exif = Image.Exif()
        if number == 4:
            exif[0x0112] = 6  # shown turned by 90 degrees: 37 wide, 61 high
        stored.save(path, exif=exif)
        width, height = load(path).image.size
        count = 0 if number == 2 else 3
        low = rng.uniform(0, 0.5, (count, 2)) * [width, height]
        xyxy = np.concatenate([low, low + rng.uniform(0.1, 0.5, (count, 2)) * [width, height]], axis=1)
        if count:
            xyxy[0] = [0, 0, width, height]
        score, label = rng.uniform(0.1, 1, count), rng.integers(0, len(NAMES), count)
        ids = tuple(range(0, 2 * count, 2))
        made.append(annotated(name, path, (width, height), xyxy.round(2), label, score, number, box_ids=ids))
    assert made[3].size_wh == (37, 61)
    return made


def same(found: list[tuple[str, list[float]]], picture: AnnotatedPicture, atol: float = 0.01) -> None:
    """Names and boxes, in order."""
    assert [name for name, _ in found] == [NAMES[label] for label in picture.label]
    if found:
        np.testing.assert_allclose([box for _, box in found], picture.xyxy, atol=atol)


def test_coco_as_pycocotools_reads_it(pictures, tmp_path):
    from pycocotools.coco import COCO

    (path,) = written("coco", pictures, SETTINGS, tmp_path / "out")
    read = COCO(str(path))
    assert [one["name"] for one in read.loadCats(read.getCatIds())] == list(NAMES)
    assert sorted(read.anns) == [*range(1, sum(len(one.label) for one in pictures) + 1)]
    assert [one["file_name"] for one in read.dataset["images"]] == list(PATHS)
    for one in pictures:
        assert (read.imgs[one.number]["width"], read.imgs[one.number]["height"]) == one.size_wh
        boxes = read.loadAnns(read.getAnnIds(imgIds=[one.number]))
        found = [
            (read.cats[b["category_id"]]["name"], [x, y, x + w, y + h]) for b in boxes for x, y, w, h in [b["bbox"]]
        ]
        same(found, one)
        np.testing.assert_allclose([b["score"] for b in boxes], one.score, atol=1e-3)
        np.testing.assert_allclose([b["area"] for b in boxes], [w * h for b in boxes for *_, w, h in [b["bbox"]]])


def test_yolo_by_its_definition(pictures, tmp_path):
    (root,) = written("yolo", pictures, SETTINGS, tmp_path / "out")
    data = yaml.safe_load((root / "data.yaml").read_text(encoding="utf-8"))
    assert Path(data["path"]) == root
    assert [data["names"][i] for i in range(data["nc"])] == list(NAMES)
    links = {image.resolve(): image for image in (root / data["train"]).rglob("*.*") if image.is_file()}
    assert len(links) == len(pictures)
    assert len(list((root / "labels").rglob("*.txt"))) == len(pictures)
    for one in pictures:
        image = links[one.path.resolve()]
        # Ultralytics: the last /images/ becomes /labels/, the ending .txt.
        text = Path("/labels/".join(str(image).rsplit("/images/", 1))).with_suffix(".txt")
        width, height = load(image).image.size
        found = []
        for line in text.read_text().splitlines():
            label, x, y, w, h = line.split()
            x, w, y, h = float(x) * width, float(w) * width, float(y) * height, float(h) * height
            found.append((data["names"][int(label)], [x - w / 2, y - h / 2, x + w / 2, y + h / 2]))
        same(found, one)


def listed(root: Path) -> dict[str, str]:
    """File → picture, as the export lists them."""
    with (root / "pictures.csv").open(newline="", encoding="utf-8") as file:
        return {line["file"]: line["picture"] for line in csv.DictReader(file)}


REPEATED = ("a.jpg", "a.png", "cats/a.jpg", "cats/a.JPG", "dogs/a b.jpg", "dogs/old/a.webp", "cats__a.jpg", "g/a.gif")


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("name", ["yolo", "voc"])
def test_supervision_reads_all_pictures_from_sub_folders_and_of_names_that_repeat(name, copies, tmp_path, monkeypatch):
    import supervision

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    pictures = []
    for number, picture in enumerate((*REPEATED, *PATHS), start=1):
        path = Path("root") / f"{number}" / Path(picture).name  # each of a size of its own
        path.parent.mkdir(parents=True)
        Image.new("RGB", (40 + number, 30)).save(path)
        boxes, label = [[1, 2, 20 + number, 25]], rng.integers(0, len(NAMES), 1)
        pictures.append(annotated(picture, path, (40 + number, 30), boxes, label, number=number))
    (root,) = written(name, pictures, dataclasses.replace(SETTINGS, copies=copies), tmp_path / "out")
    if name == "yolo":
        folders = [str(root / one) for one in ("images", "labels", "data.yaml")]
        read = supervision.DetectionDataset.from_yolo(*folders)
    else:
        folders = [str(root / one) for one in ("JPEGImages", "Annotations")]
        read = supervision.DetectionDataset.from_pascal_voc(*folders)
    of_file = listed(root)
    assert sorted(of_file.values()) == sorted((*REPEATED, *PATHS))
    by_name = {one.name: one for one in pictures}
    seen = set()
    for path, image, found in read:
        one = by_name[of_file[Path(path).name]]
        assert image.shape == (30, one.size_wh[0], 3)
        assert Path(path).is_symlink() == (not copies and one.path.suffix != ".gif")
        same([(read.classes[label], box) for label, box in zip(found.class_id, found.xyxy, strict=True)], one)
        seen.add(one.name)
    assert seen == {*REPEATED, *PATHS}


def test_voc_as_its_devkit_counts_pixels_and_again(pictures, tmp_path):
    def read(root: Path) -> dict[str, list[tuple[str, list[float]]]]:
        boxes, of_file = {}, listed(root)
        for path in sorted((root / "Annotations").iterdir()):
            assert path.with_suffix("").name in (root / "ImageSets/Main/trainval.txt").read_text().splitlines()
            tree = ET.parse(path)
            of_picture = boxes[of_file[tree.findtext("filename")]] = []
            for one in tree.iter("object"):
                a, b, c, d = (float(one.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
                # From 1, and the last pixel belongs to the box: edges are xmin - 1 and xmax.
                of_picture.append((one.findtext("name"), [a - 1, b - 1, c, d]))
            size = int(tree.findtext("size/width")), int(tree.findtext("size/height"))
            assert size in ((61, 37), (37, 61))
        return boxes

    (root,) = written("voc", pictures, SETTINGS, tmp_path / "out")
    first = read(root)
    assert set(first) == set(PATHS)
    for one in pictures:
        same(first[one.name], one, atol=0.5)
    moved = [
        dataclasses.replace(one, xyxy=np.array([box for _, box in first[one.name]], np.float32).reshape(-1, 4))
        for one in pictures
    ]  # written again out of what was read: nothing moves
    assert read(written("voc", moved, SETTINGS, tmp_path / "out")[0]) == first


def test_label_studio_by_its_documented_shape(pictures, tmp_path):
    tasks_path, config_path = written("labelstudio", pictures, SETTINGS, tmp_path / "out")
    config = ET.parse(config_path).getroot()
    (control,), (image,) = config.findall("RectangleLabels"), config.findall("Image")
    allowed = [one.get("value") for one in control.findall("Label")]
    assert allowed == list(NAMES)
    assert len({one.get("background") for one in control.findall("Label")}) == len(NAMES)
    assert control.get("toName") == image.get("name")
    tasks = json.loads(tasks_path.read_text())
    ids = [one["id"] for task in tasks for one in task["predictions"][0]["result"]]
    assert ids == [f"p{one.number}b{i}" for one in pictures for i in one.box_ids]
    for task, one in zip(tasks, pictures, strict=True):
        address = task["data"][image.get("value").removeprefix("$")]
        assert address.isascii()
        assert not set(' "<>&') & set(address)
        assert unquote(address) == f"/data/local-files/?d={one.name}"
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "cliploc mini cam"
        found = []
        for result in prediction["result"]:
            ends = control.get("name"), image.get("name")
            assert (result["type"], result["from_name"], result["to_name"]) == ("rectanglelabels", *ends)
            value, (width, height) = result["value"], (result["original_width"], result["original_height"])
            assert (width, height) == one.size_wh
            x, y = value["x"] / 100 * width, value["y"] / 100 * height
            box = [x, y, x + value["width"] / 100 * width, y + value["height"] / 100 * height]
            assert value["rectanglelabels"][0] in allowed
            found.append((value["rectanglelabels"][0], box))
        same(found, one)
        np.testing.assert_allclose([result["score"] for result in prediction["result"]], one.score, atol=1e-3)
        if found:
            assert prediction["score"] == pytest.approx(float(one.score.min()), abs=1e-3)


def test_cvat_by_its_xml(pictures, tmp_path):
    (path,) = written("cvat", pictures, SETTINGS, tmp_path / "out")
    root = ET.parse(path).getroot()
    assert root.findtext("version") == "1.1"
    assert [one.text for one in root.findall("meta/task/labels/label/name")] == list(NAMES)
    images = root.findall("image")
    assert [one.get("id") for one in images] == ["0", "1", "2", "3", "4", "5"]
    for image, one in zip(images, pictures, strict=True):
        assert image.get("name") == one.name
        assert (int(image.get("width")), int(image.get("height"))) == one.size_wh
        corners = [[float(box.get(key)) for key in ("xtl", "ytl", "xbr", "ybr")] for box in image.findall("box")]
        same([(b.get("label"), xyxy) for b, xyxy in zip(image.findall("box"), corners, strict=True)], one)


def test_the_table_as_any_csv_reader_reads_it(pictures, tmp_path):
    (path,) = written("csv", pictures, SETTINGS, tmp_path / "out")
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for one in pictures:
        of_picture = [line for line in lines if line["path"] == one.name]
        assert {(int(line["width"]), int(line["height"])) for line in of_picture} == {one.size_wh}
        boxes = [line for line in of_picture if line["label"]]
        same([(line["label"], [float(line[key]) for key in ("x0", "y0", "x1", "y1")]) for line in boxes], one)
        np.testing.assert_allclose([float(line["score"]) for line in boxes], one.score, atol=1e-3)


@pytest.mark.parametrize(("certainty", "texts"), [(None, ["", ""]), (np.array([0.25, np.nan]), ["0.25", ""])])
def test_a_certainty_that_is_not_known_is_empty_in_the_table(certainty, texts, tmp_path):
    one = annotated("a.jpg", tmp_path / "a.jpg", (8, 8), [[0, 0, 4, 4], [1, 1, 5, 5]], certainty=certainty)
    (path,) = written("csv", [one], SETTINGS, tmp_path / "out")
    assert [line["certainty"] for line in csv.DictReader(path.read_text().splitlines())] == texts


# --------------------------------------------------------------------------------------------------------- file names
LEADING_OUT = (
    *("/data/a.jpg", "//data/a.jpg", "../../data/a.jpg", "x/../../data/a.jpg", "..\\..\\data\\a.jpg", "C:/data/a.jpg"),
    *("...jpg", "..", "//", ". ./a.jpg", "a.xml/b.jpg", "a.jpg", "a.jpg/b.jpg", "A.JPG"),
    *("x" * 250 + ".jpg", "x" * 250 + ".png", "cafe\u0301.jpg", "caf\u00e9.jpg"),
)


@settings(max_examples=100, deadline=None)
@example([*LEADING_OUT])
@given(st.lists(st.text(st.sampled_from("/\\.:aA\u00e9e\u0301-2_ \x01") | st.characters(), max_size=40), min_size=1))
def test_any_picture_has_files_of_its_own_inside_the_folder(ids):
    with tempfile.TemporaryDirectory() as folder:
        names = FileNames(Path(folder))
        seen = set()
        for name in dict.fromkeys(ids):
            files = names.of(annotated(name, Path("a.jpg"), (8, 8)), "images/*.jpg", "labels/*.txt")
            for path, kind in zip(files, ("images", "labels"), strict=True):
                assert Path(folder).resolve() / kind in path.resolve().parents
                assert ".." not in path.parts
                path.touch(exist_ok=False)  # a file of its own, in a folder that can be made
                seen.add(path)
        assert len(seen) == 2 * len(set(ids))
        # Also where a file system takes large letters for small ones, and an accent for a letter with it.
        assert len({unicodedata.normalize("NFC", str(path)).casefold() for path in seen}) == len(seen)


def test_voc_boxes_of_the_last_half_pixel_stay_in_the_picture(pictures, tmp_path):
    sliver = annotated("a.jpg", pictures[0].path, (40, 30), [[39.8, 29.8, 40, 30]])
    (root,) = written("voc", [sliver], SETTINGS, tmp_path / "out")
    box = ET.parse(root / "Annotations" / "a.xml").getroot().find("object/bndbox")
    assert [int(one.text) for one in box] == [40, 30, 40, 30]


# ------------------------------------------------------------------------------------------------------- splits, states
@pytest.fixture
def ten(tmp_path) -> list[AnnotatedPicture]:
    """Ten pictures, of which every second is reviewed."""
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(path)
    states = ("draft", "reviewed")
    return [
        annotated(f"{n % 3}/a{n}.png", path, (40, 30), [[1, 2, 20, 25]], number=n + 1, state=states[n % 2])
        for n in range(10)
    ]


def test_a_share_of_the_pictures_is_for_validation_and_the_same_every_time(ten, tmp_path):
    split = dataclasses.replace(SETTINGS, val=0.3)
    (root,) = written("yolo", ten, split, tmp_path / "out")
    data = yaml.safe_load((root / "data.yaml").read_text(encoding="utf-8"))
    files = {part: sorted(one.name for one in (root / data[part]).iterdir()) for part in ("train", "val")}
    assert (len(files["train"]), len(files["val"])) == (7, 3)
    assert not set(files["train"]) & set(files["val"])
    texts = {part: sorted(f"{one.stem}.png" for one in (root / "labels" / part).iterdir()) for part in files}
    assert texts == files
    of_file = listed(root)
    assert sorted(of_file) == sorted(files["train"] + files["val"])
    (voc,) = written("voc", ten, split, tmp_path / "voc")
    for part, names in files.items():
        ids = (voc / "ImageSets/Main" / f"{part}.txt").read_text().split()
        assert {listed(voc)[f"{one}.png"] for one in ids} == {of_file[name] for name in names}
    (again,) = written("yolo", ten[::-1], split, tmp_path / "again")
    assert {listed(again)[one.name] for one in (again / "images/val").iterdir()} == {of_file[n] for n in files["val"]}
    (one,) = written("yolo", ten[:1], split, tmp_path / "one")
    assert "val: images\n" in (one / "data.yaml").read_text(encoding="utf-8"), "of one picture nothing can be held out"


def test_a_picture_has_its_state_and_those_not_reviewed_can_be_left_out(ten, tmp_path):
    for reviewed in (False, True):
        chosen = dataclasses.replace(SETTINGS, reviewed=reviewed)
        pictures = [*pictures_of(lambda: ten, chosen)()]
        assert len(pictures) == (5 if reviewed else 10)
        (coco,) = written("coco", pictures, chosen, tmp_path / f"coco{reviewed}")
        (table,) = written("csv", pictures, chosen, tmp_path / f"csv{reviewed}")
        states = {one.name: one.state for one in pictures}
        assert {one["file_name"]: one["state"] for one in json.loads(coco.read_text())["images"]} == states
        with table.open(newline="") as file:
            assert {line["path"]: line["state"] for line in csv.DictReader(file)} == states


# --------------------------------------------------------------------------------------------------------- every format
ODD_NAMES = ("traffic light", 'a "large", red cat', "猫 & <кот>", "yes", "=1+1", "a|b\ttab", "x" * 300)
HOSTILE = (
    "plain.jpg", "plain.png", 'sub folder/a, "b" & <c>\'d.jpg', "sub folder/猫é.jpg", "../beside/plain.jpg",
    "/etc/passwd.jpg", "//data/a.jpg", "..\\..\\data\\a.jpg", "C:\\data\\a.jpg", "images/labels/coco.json.jpg",
    "x" * 250 + ".jpg", "-rf *.jpg",
)  # fmt: skip
ODD = ExportSettings(ODD_NAMES, "cliploc <mini> & cam", "/data/local-files/?d=")
every = pytest.mark.parametrize("export", list(exports), ids=lambda one: one.name)


def made(tmp_path: Path, names: tuple[str, ...]) -> list[AnnotatedPicture]:
    """Pictures of these names with no, one or two boxes; all are the same file."""
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (61, 37)).save(photo)
    pictures = []
    for number, name in enumerate(names, start=1):
        count = number % 3
        boxes = [[0, 0, 61, 37], [3.25, 4.5, 20.125, 30.75]][:count]
        label = np.arange(number, number + count) % len(ODD_NAMES)
        pictures.append(annotated(name, photo, (61, 37), boxes, label, [1.0, 0.123456][:count], number))
    return pictures


def content(folder: Path) -> dict[str, bytes]:
    return {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


@every
def test_it_says_what_it_is(export):
    assert export.about.strip() == export.about
    assert "\n" not in export.about
    assert "|" not in export.about  # it stands in a table of Markdown
    assert export.outputs
    assert all(Path(name).name == name for name in export.outputs), "names in the folder, no paths"


def test_no_two_formats_write_the_same_file():
    outputs = [name.casefold() for one in exports for name in one.outputs]
    assert len(set(outputs)) == len(outputs)
    assert not set(outputs) & {"manifest.json", "summary.json", "review.html", "parts"}


@every
@pytest.mark.parametrize("count", [0, 1, len(HOSTILE)])
def test_it_writes_what_it_declares_and_nothing_else(export, count, tmp_path):
    pictures = made(tmp_path, HOSTILE[:count])
    out = tmp_path / "above" / "out"
    out.mkdir(parents=True)
    before = sorted(path.name for path in tmp_path.iterdir())
    export.write(lambda: iter(pictures), ODD, out)
    assert sorted(one.name for one in out.iterdir()) == sorted(export.outputs)
    assert all((out / name).is_file() for name in export.files)
    assert all((out / name).is_dir() for name in export.folders)
    assert [one.name for one in (tmp_path / "above").iterdir()] == ["out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@every
def test_its_bytes_are_the_same_every_time(export, tmp_path):
    """Also in a second folder of that name, over files that are there, and after pictures have gone and come back."""
    pictures = made(tmp_path, HOSTILE)
    out = tmp_path / "out"
    out.mkdir()
    export.write(lambda: iter(pictures), ODD, out)
    first = content(out)
    export.write(lambda: iter(pictures[:1]), ODD, out)
    assert content(out) != first
    export.write(lambda: iter(pictures), ODD, out)
    assert content(out) == first


@every
def test_files_alone_need_no_pictures(export, tmp_path):
    if export.folders:
        pytest.skip("comes with the pictures")
    pictures = made(tmp_path, HOSTILE)
    pictures[0].path.unlink()
    export.write(lambda: iter(pictures), ODD, tmp_path)
    assert all((tmp_path / name).stat().st_size for name in export.files)


def test_formats_are_chosen_by_name_once_each():
    assert [one.name for one in chosen_exports(["csv", "coco", "csv"])] == ["csv", "coco"]
    assert [one.name for one in chosen_exports("coco")] == ["coco"]


# -------------------------------------------------------------------------------------------------------------- reading
SIZES = {"a.jpg": (61, 37), "sub/b.png": (30, 50), "c.jpg": (20, 20)}
BOXES = {"a.jpg": [[1, 2, 30, 20], [10, 10, 61, 37]], "sub/b.png": [], "c.jpg": [[0, 0, 20, 20]]}
NAMES_READ = ("cat", "traffic light")


@pytest.fixture
def pictures_read(tmp_path: Path) -> list[AnnotatedPicture]:
    made = []
    for number, (name, boxes) in enumerate(BOXES.items(), start=1):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZES[name]).save(path)
        made.append(annotated(name, path, SIZES[name], boxes, range(len(boxes)), number=number))
    return made


def boxes_of(path: Path) -> dict[str, list[LabelledBox]]:
    """Picture → its boxes, found by the names in the set."""
    labels = read_labels(path)
    find = PictureFinder(SIZES, labels.listed, {})
    found = {find(one.names, one.more): one for one in labels.pictures}
    assert all(one.size_wh in (None, SIZES[name]) for name, one in found.items())
    return {name: list(one.boxes(SIZES[name], False)) for name, one in found.items()}


@pytest.mark.parametrize("name", exports.names())
def test_what_we_write_comes_back_with_names_edges_and_ids(name, pictures_read, tmp_path):
    path = written(name, pictures_read, ExportSettings(NAMES_READ, "m", "/data/?d="), tmp_path / "out")[0]
    if name == "labelstudio":  # what a person has approved
        path.write_text(path.read_text().replace('"predictions"', '"annotations"'))
    found = boxes_of(path)
    assert found.keys() == BOXES.keys()
    for picture, boxes in found.items():
        assert [box.name for box in boxes] == [NAMES_READ[i] for i in range(len(boxes))]
        assert len({box.id for box in boxes}) == len(boxes) == len(BOXES[picture])
        assert {box.kind for box in boxes} <= {"box"}
        if boxes:
            np.testing.assert_allclose([box.xyxy for box in boxes], BOXES[picture], atol=0.5)


def test_ids_are_the_sets_and_boxes_are_as_written(tmp_path):
    things = [
        {"id": 40, "image_id": 7, "category_id": 2, "bbox": [-3, 0, 5, 5]},
        {"id": "x", "image_id": 7, "category_id": 2, "bbox": [1, 1, 0, 4], "segmentation": [[1, 1, 5, 1, 5, 5]]},
    ]
    images, categories = [{"id": 7, "file_name": "c.jpg"}], [{"id": 2, "name": "cat"}]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": things}))
    assert [(box.id, box.xyxy) for box in boxes_of(path)["c.jpg"]] == [("40", (-3, 0, 2, 5)), ("x", (1, 1, 1, 5))]
    masks = [box.mask for box in read_labels(path).pictures[0].boxes((20, 20), True)]
    assert [mask and int(mask()[1::2].sum()) for mask in masks] == [None, 6]


# --------------------------------------------------------------------------------------------------------- export masks
MASK_NAMES = ("traffic light", "a: b", "猫")
SIZE = (160, 120)  # width and height
MASK_SETTINGS = ExportSettings(MASK_NAMES, "cliploc mini cam", "/data/", masks=True)


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
    label, codes = np.arange(len(masks)) % len(MASK_NAMES), tuple(rle.encode(mask) for mask in masks)
    return annotated("a.png", path, SIZE, boxes, label, np.linspace(0.9, 0.3, len(masks)), masks=codes)


def export(name: str, picture: AnnotatedPicture, out: Path, settings: ExportSettings = MASK_SETTINGS) -> list[Path]:
    return written(name, [picture, annotated("empty.png", picture.path, SIZE, number=2)], settings, out)


def alike(found: list[tuple[str, np.ndarray]], picture: AnnotatedPicture, least: float = 0.99) -> None:
    assert [name for name, _ in found] == [MASK_NAMES[label] for label in picture.label]
    for (_, mask), code in zip(found, picture.masks, strict=True):
        true, read = rle.decode(code), np.asarray(mask, bool)
        assert (true & read).sum() / (true | read).sum() >= least


def test_masks_in_coco_as_pycocotools_reads_them(picture, tmp_path):
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


def test_outlines_in_yolo_by_its_definition(picture, tmp_path):
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
    assert [one.get("value") for one in tag] == list(MASK_NAMES)
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
    label = np.arange(count) % len(MASK_NAMES)
    crowded = annotated("a.png", path, size, boxes, label, np.linspace(0.9, 0.3, count), masks=codes)
    (root,) = export("voc", crowded, tmp_path / "out")
    with Image.open(root / "SegmentationObject/a.png") as objects:
        objects = np.asarray(objects)
    assert [objects[y, x] for x, y in places] == [*range(1, 255), 255, 255]
    (again,) = read_corrections(root, {"a.png": size}, [(name,) for name in MASK_NAMES], masks=True).pictures.values()
    assert [one is None for one in again.masks] == [False] * 254 + [True] * 2


@pytest.mark.parametrize("name", exports.names())
def test_without_masks_nothing_of_them_is_export(name, picture, tmp_path):
    export(name, replace(picture, masks=()), tmp_path / "out", replace(MASK_SETTINGS, masks=False))
    text = b"".join(one.read_bytes() for one in (tmp_path / "out").rglob("*") if one.is_file() and one.suffix != ".png")
    assert b"rle" not in text
    assert b"segmented>1" not in text
