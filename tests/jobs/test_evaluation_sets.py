"""The docs' sets, built from public sets: of their names, with other pictures."""

import csv
import json
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

from cliploc.datasets import open_dataset
from cliploc.jobs.evaluation_sets import SETS
from cliploc.prompts import imagenet_classes
from tests.commands import cliploc_, refused, succeeded
from tests.datasets.folders import picture

SHARED = Path(__file__).parents[3] / "shared/data"


def wanted(name: str) -> list[str]:
    text = (resources.files("cliploc.jobs") / "evaluation_pictures" / f"{name}.csv").read_text()
    return [row["picture"] for row in csv.DictReader(text.splitlines())]


def ilsvrc(root: Path) -> Path:
    for name in wanted("ilsvrc-677"):
        picture(root / "val" / name)
        xml = root / "Annotations/CLS-LOC/val" / f"{Path(name).stem}.xml"
        xml.parent.mkdir(parents=True, exist_ok=True)
        box = "<xmin>10</xmin><ymin>0</ymin><xmax>50</xmax><ymax>30</ymax>"
        thing = f"<object><name>n01443537</name><bndbox>{box}</bndbox></object>"
        xml.write_text(f"<annotation><size><width>50</width><height>40</height></size>{thing}</annotation>")
    return root


def coco(root: Path) -> Path:
    names = wanted("coco-174")
    for split, there in (("val2017", names[:100]), ("train2017", names[100:])):
        ids = [int(Path(name).stem) for name in there]
        for name in there:
            picture(root / split / name)
        path = root / f"annotations/instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        images = [{"id": i, "file_name": f"{i:012}.jpg", "width": 50, "height": 40} for i in (*ids, 999)]
        things = [
            {"id": i + 7, "image_id": i, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 0} for i in (*ids, 999)
        ]
        path.write_text(json.dumps({"images": images, "annotations": things, "categories": [{"id": 3, "name": "car"}]}))
    return root


def coco128(root: Path) -> Path:
    for name in wanted("coco-65"):
        picture(root / "images/train2017" / name)
        labels = root / "labels/train2017" / f"{Path(name).stem}.txt"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text("11 0.2 0.5 0.6 0.5 0.6 0.75 0.2 0.75\n")  # the twelfth category, which has the id 13
    return root


def samples(root: Path) -> Path:
    for i, one in enumerate(imagenet_classes()):
        picture(root / f"{one.wnid}_name.JPEG", (600, 512) if i == 0 else (30, 20))
    return root


BUILD = {"ilsvrc-677": ilsvrc, "coco-65": coco128, "coco-174": coco, "imagenet-1000": samples}
FIRST = {  # the first sample: its label's name, its boxes
    "ilsvrc-677": ("goldfish", [[10, 0, 49, 30]]),  # not beyond width − 1
    "coco-65": ("stop sign", [[10, 20, 30, 30]]),
    "coco-174": ("car", [[1, 2, 4, 6]]),
}


@pytest.mark.parametrize("name", BUILD)
def test_a_set_is_built_in_the_layout_of_the_measured_one(name, tmp_path):
    root, out = BUILD[name](tmp_path / "public"), tmp_path / "made"
    result = cliploc_("datasets", "make", name, "--from", root, "--out", out)
    count = len(wanted(name))
    assert result.out == f"{count:,} pictures in {out}\n"  # synthetic ones: neither the files nor the boxes measured
    assert f"{count:,} of {count:,} pictures have other files than those measured" in result.err
    assert result.code == ("labels or boxes" in result.err) == (name in FIRST)
    if name in FIRST:
        assert f"next: cliploc benchmark --dataset {SETS[name].dataset} --root {out} " in result.err
        dataset = open_dataset(SETS[name].dataset, out)
        assert not dataset.problems
        assert len({one.path for one in dataset.samples}) == count
        label, boxes = FIRST[name]
        assert (dataset.classes[dataset.samples[0].label].name, dataset.samples[0].boxes_xyxy.tolist()) == (
            label,
            boxes,
        )
    else:
        assert Image.open(out / "n01440764.jpg").size == (300, 256)
        assert Image.open(out / "n01443537.jpg").size == (30, 20)
    measured = SHARED / SETS[name].folder
    if measured.is_dir():
        assert {str(one.relative_to(out)) for one in out.rglob("*")} == {
            str(one.relative_to(measured)) for one in measured.rglob("*")
        }


@pytest.mark.skipif(not (SHARED / "ilsvrc_val_report").is_dir(), reason="needs the pictures in ../shared/data")
def test_the_measured_truth_has_the_packages_checksums(tmp_path):
    """The measured metadata beside pictures of their sizes are all that the second checksum is made of."""
    root, measured = tmp_path / "public", SHARED / "ilsvrc_val_report/metadata"
    (root / "metadata").mkdir(parents=True)
    for file in measured.iterdir():
        (root / "metadata" / file.name).write_bytes(file.read_bytes())
    for line in (measured / "image_sizes.txt").read_text().splitlines():
        image, width, height = line.split(",")
        (root / "val").mkdir(exist_ok=True)
        Image.new("L", (int(width), int(height))).save(root / image, "JPEG", quality=1)
    result = succeeded("datasets", "make", "ilsvrc-312", "--from", root, "--out", tmp_path / "made")
    assert "labels or boxes" not in result.err
    for file in measured.iterdir():
        assert (tmp_path / "made/metadata" / file.name).read_text() == file.read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("make", "ilsvrc-6", "--from", "{}", "--out", "{}/o"), "unknown evaluation set 'ilsvrc-6': did you mean"),
        (("make", "coco-65", "--from", "{}/none", "--out", "{}/o"), "--from is the folder of coco128-seg"),
        (
            ("make", "coco-65", "--from", "{}", "--out", "{}/o"),
            "expected 65 pictures in val2017 or train2017 in {}, 65",
        ),
        (("make", "ilsvrc-677", "--from", "{}", "--out", "{}/o"), "expected a folder of pictures at {}/val"),
        (("make", "coco-174", "--from", "{}", "--out", "{}/o"), "expected COCO's instances at {}/annotations/"),
        (("make", "imagenet-1000", "--from", "{}", "--out", "{}/o"), "1,000 are missing, the first of them n01440764"),
        (("make", "coco-65", "--from", "{}", "--out", "{}"), "expected a new folder, found something at {}"),
        (("make", "coco-65"), "expected a set, --from and --out"),
        (("coco", "--from", "{}"), "expected SET, --from and --out after make"),
    ],
)
def test_bad_roots_are_one_line(arguments, line, tmp_path):
    assert line.format(tmp_path) in refused("datasets", *(one.format(tmp_path) for one in arguments))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_as_its_format_is_one_line(tmp_path):
    for name, build, broken in (
        ("coco-65", coco128, f"labels/train2017/{Path(wanted('coco-65')[0]).stem}.txt"),
        ("coco-174", coco, "annotations/instances_val2017.json"),
    ):
        root = build(tmp_path / name)
        for content in ("[]", "0 x", '{"images": 3}'):
            (root / broken).write_text(content)
            assert str(root / broken) in refused("datasets", "make", name, "--from", root, "--out", tmp_path / "made")
        assert not (tmp_path / "made").exists()


def test_make_alone_lists_the_sets():
    result = succeeded("datasets", "make")
    for one in SETS.values():
        assert one.name in result.out
        assert one.folder in result.out
