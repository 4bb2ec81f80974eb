"""Small folders in the official layouts, with pictures of noise."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc.evaluate.data import open_dataset
from cliploc.values import Dataset


def picture(path: Path, size_wh: tuple[int, int] = (50, 40), orientation: int = 1) -> Path:
    """A picture, perhaps with an EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(sum(size_wh)).integers(0, 255, (*size_wh[::-1], 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise).save(path, exif=exif)
    return path


def lines(path: Path, rows: Iterable[Sequence[object] | str], separator: str = ",") -> Path:
    """A text of one row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [row if isinstance(row, str) else separator.join(map(str, row)) for row in rows]
    path.write_text("".join(text + "\n" for text in texts))
    return path


def replace(path: Path, old: str, new: str) -> None:
    """Changes a file that must hold `old`."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def xml(path: Path, size_wh: tuple[int, int], things: Iterable[tuple[str, Sequence[float], int]]) -> Path:
    """Name, box and difficult of each thing, in the XML that VOC and ILSVRC publish."""
    objects = ""
    for name, box, difficult in things:
        edges = "".join(f"<{tag}>{at}</{tag}>" for tag, at in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        objects += f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{edges}</bndbox></object>"
    size = f"<size><width>{size_wh[0]}</width><height>{size_wh[1]}</height><depth>3</depth></size>"
    return lines(path, [f"<annotation><filename>{path.stem}</filename>{size}{objects}</annotation>"])


def metadata(
    folder: Path, rows: Mapping[str, tuple[int, tuple[int, int], Sequence[Sequence[int]]]], sizes: bool = True
) -> Path:
    """The WSOL evaluation's metadata: image id → label, size, boxes."""
    lines(folder / "image_ids.txt", rows)
    lines(folder / "class_labels.txt", [(one, label) for one, (label, _, _) in rows.items()])
    if sizes:
        lines(folder / "image_sizes.txt", [(one, *size) for one, (_, size, _) in rows.items()])
    lines(folder / "localization.txt", [(one, *box) for one, (_, _, boxes) in rows.items() for box in boxes])
    return folder


def wsol(root: Path) -> Path:
    """Three pictures of two classes; one file is stretched to 32×32."""
    rows = {
        "val/a.JPEG": (0, (50, 40), [(5, 6, 30, 39)]),
        "val/b.JPEG": (1, (60, 20), [(0, 0, 59, 19), (10, 5, 20, 15)]),
        "val/c.JPEG": (1, (50, 40), [(0, 0, 49, 39)]),
    }
    metadata(root / "metadata", rows)
    lines(root / "synsets.csv", ["label,wnid,synset_words", '0,n01440764,"a fish, any"', '1,,"my thing, gadget"'])
    for one in rows:
        picture(root / one, (32, 32) if one == "val/b.JPEG" else (50, 40))
    return root


def ilsvrc(root: Path, by_class: bool = False, with_xml: bool = True, with_metadata: bool = False) -> Path:
    """Two pictures of the validation set: a sea snake and a tench, whose boxes differ between XML and metadata."""
    things = {
        "00000001": ("n01751748", (500, 375), (111, 108, 441, 193)),
        "00000293": ("n01440764", (50, 40), (0, 0, 50, 40)),
    }
    labels = {"n01751748": 65, "n01440764": 0}
    for number, (wnid, size, box) in things.items():
        name = f"ILSVRC2012_val_{number}"
        picture(root / "val" / (wnid if by_class else "") / f"{name}.JPEG", size)
        if with_xml:
            xml(root / "Annotations/CLS-LOC/val" / f"{name}.xml", size, [(wnid, box, 0)])
    if with_metadata:
        rows = {}
        for number, (wnid, size, box) in things.items():
            inside = np.minimum(box, (*size, size[0] - 1, size[1] - 1))
            rows[f"val/ILSVRC2012_val_{number}.JPEG"] = labels[wnid], size, [inside]
        metadata(root / "metadata/ILSVRC/test", rows)
    return root


HASHES = {"0/0.jpeg": "0/a31041fd.jpeg", "0/1.jpeg": "0/bcf8a532.jpeg", "1/0.jpeg": "1/c6006866.jpeg"}


def imagenetv2(
    root: Path, pictures: str = "hash", names: str = "hash", mapping: bool = False, wnids: bool = False
) -> Path:
    """Three pictures, with pictures and metadata of either release."""
    rows = {}
    for number, hashed in HASHES.items():
        label = int(number.split("/")[0])
        file = (hashed if pictures == "hash" else number).split("/")[1]
        picture(root / "val2" / (("n01440764", "n01443537")[label] if wnids else str(label)) / file)
        rows[f"val2/{hashed if names == 'hash' else number}"] = (label, (50, 40), [(label, 2, 30, 39)])
    metadata(root / "metadata/ILSVRC/val", rows)
    if mapping:
        lines(root / "metadata/ILSVRC/val/mapping.txt", [f"{a}, {b}" for a, b in HASHES.items()])
    return root


def cub(root: Path) -> Path:
    """Three birds of two kinds, one of them in the training split."""
    base = root / "CUB_200_2011"
    paths = [
        "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
        "001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg",
        "002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg",
    ]
    tables = {
        "images": enumerate(paths, start=1),
        "bounding_boxes": [(1, 6.0, 2.0, 32.0, 30.0), (2, 1.0, 1.0, 8.0, 8.0), (3, 0.0, 4.0, 50.0, 36.0)],
        "image_class_labels": [(1, 1), (2, 1), (3, 2)],
        "train_test_split": [(1, 0), (2, 1), (3, 0)],
        "classes": [(1, "001.Black_footed_Albatross"), (2, "002.Laysan_Albatross")],
    }
    for name, rows in tables.items():
        lines(base / f"{name}.txt", rows, " ")
    for path in paths:
        picture(base / "images" / path)
    return root


def openimages30k(root: Path) -> Path:
    """Two pictures of two classes; the first has two masks and one ignore region."""
    folder = root / "metadata/OpenImages/test"
    books, cups = "test/0bt_c3/0a51958f", "test/02jvh9/32fdab44"
    lines(folder / "image_ids.txt", [f"{books}.jpg", f"{cups}.jpg"])
    lines(folder / "class_labels.txt", [(f"{books}.jpg", 0), (f"{cups}.jpg", 1)])
    masks = [
        (f"{books}.jpg", f"{books}_m0bt_c3_41344f12.png", f"{books}_ignore.png"),
        (f"{books}.jpg", f"{books}_m0bt_c3_48f37c0f.png", ""),
        (f"{cups}.jpg", f"{cups}_m02jvh9_7dab3053.png", f"{cups}_ignore.png"),
    ]
    lines(folder / "localization.txt", masks)
    for one, mask, ignore in masks:
        for name in filter(None, (one, mask, ignore)):
            picture(root / "OpenImages" / name)
    lines(root / "class-descriptions-boxable.csv", ["/m/0bt_c3,Book", "/m/02jvh9,Mug", "/m/01yrx,Cat"])
    return root


def voc(root: Path) -> Path:
    """A picture with two dogs, one of them difficult, and a monitor; one with a difficult cow only."""
    base = root / "VOCdevkit/VOC2012"
    things = [("tvmonitor", (34, 11, 44, 40), 0), ("dog", (1, 1, 50, 40), 0), ("dog", (3, 3, 5, 5), 1)]
    xml(base / "Annotations/2008_000002.xml", (50, 40), things)
    xml(base / "Annotations/2008_000007.xml", (50, 40), [("cow", (1, 1, 9, 9), 1)])
    for one in ("2008_000002", "2008_000007"):
        picture(base / f"JPEGImages/{one}.jpg")
    lines(base / "ImageSets/Main/val.txt", ["2008_000002", "2008_000007"])
    return root


def instances(files: Mapping[int, str], names: Mapping[int, str], things: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """COCO's document: ids of pictures and of categories; of a thing its id, picture, category, box, and if a crowd."""
    return {
        "images": [{"id": one, "file_name": name, "width": 50, "height": 40} for one, name in files.items()],
        "categories": [{"id": one, "name": name, "supercategory": "any"} for one, name in names.items()],
        "annotations": [
            {"id": one, "image_id": of, "category_id": what, "bbox": box, "iscrowd": crowd, "area": box[2] * box[3]}
            for one, of, what, box, crowd in things
        ],
    }


COCO = instances(
    {139: "000000000139.jpg", 285: "000000000285.jpg"},
    {72: "tv", 1: "person"},
    [
        (1, 139, 72, [5.5, 6.25, 20.0, 30.5], 0),
        (2, 139, 1, [0, 0, 10, 40], 0),
        (3, 139, 1, [20, 0, 10, 40], 0),
        (4, 139, 1, [0, 0, 50, 40], 1),
        (5, 285, 1, [0, 0, 50, 40], 1),
    ],
)


def coco(root: Path, document: Mapping[str, object] = COCO) -> Path:
    """Two pictures; the second holds a crowd only."""
    path = root / "annotations/instances_val2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    for one in COCO["images"]:
        picture(root / "val2017" / str(one["file_name"]))
    return root


def folder(root: Path) -> Path:
    """Two pictures; the first has two labels."""
    rows = ["path,label,x0,y0,x1,y1", "a.jpg,cat|kitten,1,2,30,40", "a.jpg,dog,0,0,5,5", "sub/b.png,dog,10,10,50,40"]
    lines(root / "boxes.csv", rows)
    picture(root / "a.jpg")
    picture(root / "sub/b.png")
    return root


# Of any other reader, test_NAME.py beside this file has a function `build`.
BUILDERS = {one.__name__: one for one in (wsol, ilsvrc, imagenetv2, cub, openimages30k, voc, coco, folder)}


def make(name: str, root: Path) -> Path:
    """A small folder in a reader's layout."""
    build: Callable[[Path], Path] = BUILDERS.get(name) or import_module(f"tests.evaluate.data.test_{name}").build
    return build(root)


def boxes(dataset: Dataset) -> dict[str, list[list[float]]]:
    """Sample id → boxes."""
    return {one.id: one.boxes_xyxy.tolist() for one in dataset.samples}


def named(name: str, root: Path, split: str | None = None) -> list[tuple[str, str]]:
    """Kind and source of each problem."""
    return [(one.kind, one.source) for one in open_dataset(name, root, split).problems]
