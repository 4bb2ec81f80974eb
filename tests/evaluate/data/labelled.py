"""Tiny folders in the layouts of the segmentation sets, with pictures of noise and label maps of blocks."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tests.evaluate.data.folders import lines, picture

SIZE = (60, 44)  # width and height


def labels(path: Path, values: Sequence[int], size_wh: tuple[int, int] = SIZE, palette: bool = False) -> None:
    """A label map of vertical stripes of these labels; a .tif has 16 bits, as CAT-Seg's scripts write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size_wh
    row = np.array(values, np.uint16 if path.suffix == ".tif" else np.uint8)[np.arange(width) * len(values) // width]
    made = np.repeat(row[None], height, axis=0)
    image = Image.fromarray(made)
    if palette:
        image = image.convert("P")
        image.putpalette([7 * one % 256 for one in range(768)])
        image.putdata(made.ravel().tolist())
    image.save(path)


VOC, ADE, ADE_FULL = "VOCdevkit/VOC2012/", "ADEChallengeData2016/", "ADE20K_2021_17_01/"
LAYOUTS = {  # set → pictures, label maps (`#`: the number of each), and the stripes of each label map
    "voc21": (f"{VOC}JPEGImages/2007_#.jpg", f"{VOC}SegmentationClass/2007_#.png", ([0, 1, 255], [0, 20, 3])),
    "context60": ("VOC2010/JPEGImages/2008_#.jpg", "VOC2010/SegmentationClassContext/2008_#.png", ([0, 1], [59, 3])),
    "context459": (
        "VOCdevkit/VOC2010/JPEGImages/2008_#.jpg", "VOCdevkit/VOC2010/annotations_detectron2/pc459_val/2008_#.tif",
        ([0, 255], [458, 3]),
    ),
    "coco_stuff": ("images/val2017/00#.jpg", "annotations/val2017/00#_labelTrainIds.png", ([0, 170], [255, 3])),
    "coco_object": ("images/val2017/00#.jpg", "annotations/val2017/00#_instanceTrainIds.png", ([0, 80], [1, 3])),
    "cityscapes": (
        "leftImg8bit/val/ulm/ulm_#_leftImg8bit.png", "gtFine/val/ulm/ulm_#_gtFine_labelTrainIds.png",
        ([0, 18], [255, 3]),
    ),
    "ade20k": (
        f"{ADE}images/validation/ADE_val_#.jpg", f"{ADE}annotations/validation/ADE_val_#.png", ([0, 150], [1, 3]),
    ),
    "ade847": (
        f"{ADE_FULL}images_detectron2/validation/ADE_val_#.jpg",
        f"{ADE_FULL}annotations_detectron2/validation/ADE_val_#.tif", ([0, 255, 65535], [846, 3]),
    ),
}  # fmt: skip


def striped(name: str, root: Path) -> Path:
    """Pictures and label maps in the layout of a set."""
    pictures, maps, values = LAYOUTS[name]
    for number, stripes in enumerate(values):
        picture(root / pictures.replace("#", str(number)), SIZE)
        labels(root / maps.replace("#", str(number)), stripes, palette=name == "voc21")
    return root


def voc(root: Path) -> Path:
    lines(root / VOC / "ImageSets/Segmentation/val.txt", ["2007_0", "2007_1"])
    return striped("voc21", root)


def context(root: Path) -> Path:
    lines(root / "VOC2010/ImageSets/SegmentationContext/val.txt", ["2008_0", "2008_1"])
    return striped("context60", root)


def context459(root: Path) -> Path:
    picture(root / "VOCdevkit/VOC2010/JPEGImages/2009_0.jpg", SIZE)  # of another split
    return striped("context459", root)


CATEGORIES = [one for one in range(1, 91) if one not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # COCO's 80 ids


def coco_object(root: Path) -> Path:
    """Two pictures: a large and a small square that overlap, and a crowd."""
    width, height = SIZE
    square = [10.0, 5.0, 40.0, 5.0, 40.0, 35.0, 10.0, 35.0]
    small = [20.0, 10.0, 30.0, 10.0, 30.0, 20.0, 20.0, 20.0]
    crowd = {"counts": [height * 10, height * 5, height * (width - 15)], "size": [height, width]}  # columns 10 to 14
    document = {
        "images": [
            {"id": number, "file_name": f"00{number}.jpg", "width": width, "height": height} for number in (0, 1)
        ],
        "categories": [{"id": one, "name": f"category {one}"} for one in CATEGORIES],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 17, "segmentation": [small], "area": 100, "iscrowd": 0},
            {"id": 2, "image_id": 0, "category_id": 1, "segmentation": [square], "area": 900, "iscrowd": 0},
            {"id": 3, "image_id": 1, "category_id": 90, "segmentation": crowd, "area": 220, "iscrowd": 1},
        ],
    }
    for number in (0, 1):
        picture(root / "val2017" / f"00{number}.jpg", SIZE)
    path = root / "annotations" / "instances_val2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return root


def imagenet_seg(root: Path, wnids: Sequence[str] = ("n02123045", "n99999999", "n02084071")) -> Path:
    """Pictures in MATLAB's HDF5: cells are references, and arrays are stored transposed."""
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    width, height = SIZE
    random = np.random.default_rng(0)
    mask = np.zeros((height, width), np.uint8)
    mask[10:30, 20:50] = 1
    with h5py.File(root / "gtsegs_ijcv.mat", "w") as mat:
        cells: dict[str, list[object]] = {"img": [], "gt": [], "target": []}
        for number, wnid in enumerate(wnids):
            pixels = random.integers(0, 255, (height, width, 3), np.uint8)
            stored = mat.create_dataset(f"data/img{number}", data=pixels.transpose(2, 1, 0))
            cells["img"].append(stored.ref)
            inner = mat.create_dataset(f"data/mask{number}", data=mask.T)
            cell = mat.create_dataset(f"data/gt{number}", (1, 1), h5py.ref_dtype)
            cell[0, 0] = inner.ref
            cells["gt"].append(cell.ref)
            codes = np.array([[ord(letter)] for letter in wnid], np.uint16)
            cells["target"].append(mat.create_dataset(f"data/target{number}", data=codes).ref)
        for name, references in cells.items():
            column = mat.create_dataset(f"value/{name}", (len(references), 1), h5py.ref_dtype)
            for number, reference in enumerate(references):
                column[number, 0] = reference
    return root


BUILD = {
    "voc21": voc, "voc20": voc, "context60": context, "context59": context,
    "coco_object": coco_object,  # polygons
    "context459": context459, "imagenet_seg": imagenet_seg,
    **{name: partial(striped, name) for name in ("coco_stuff", "cityscapes", "ade20k", "ade847")},
}  # fmt: skip
