"""COCO-Object: COCO's 80 classes of things, and everything else as the background.

The label maps are those that SCLIP's cvt_coco_object.py makes of COCO-Stuff's, or they are drawn here from COCO's own
annotations: every pixel inside a thing's polygons or a crowd's run lengths has its class. Where things overlap, the
smaller one is on top, of equal ones the later; COCO-Stuff's maps may differ there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cliploc.evaluate.data._infra.candidates import Problems, picture_ids
from cliploc.evaluate.data._infra.files import HELP, coco_format, first_folder, json_object, needed_folder
from cliploc.evaluate.data._infra.labelled import Labelled, Outlines, labelled_reader, pictures_or_maps
from cliploc.evaluate.data._infra.registration import Split
from cliploc.find.segmentation.protocol import class_list
from cliploc.images.polygons import Outline, outlines_of
from cliploc.runs.samples import LabelledPicture

SUFFIX = "_instanceTrainIds.png"


@labelled_reader(
    "coco_object",
    title="COCO-Object",
    about="80 classes of things and the background",
    source="cocodataset.org (2017 val images, 2017 train/val annotations)",
    splits=(Split("val2017", "report", "5,000 pictures"), Split("train2017", "tune", "118,287 pictures")),
    layout="""
annotations/instances_val2017.json                     polygons, from which label maps are drawn
val2017/000000000139.jpg                               the pictures (also: images/val2017/)
annotations/val2017/000000000139_instanceTrainIds.png  or, instead of the JSON: label maps, 0 for the background
""",
)
def read(root: Path, split: str, problems: Problems) -> Labelled:
    """Reads a split: label maps where there are any, else polygons."""
    classes = class_list("coco_object")
    images = needed_folder(root, [split, f"images/{split}"], "pictures")
    maps = first_folder(root, [f"annotations/{split}"])
    if maps is not None and any(maps.glob(f"*{SUFFIX}")):
        return classes, pictures_or_maps(images, maps, SUFFIX)
    path = root / "annotations" / f"instances_{split}.json"
    document = json_object(path, f"expected {path}, or label maps in annotations/{split}; found neither: {HELP}")
    with coco_format(path, "download"):
        return classes, _of_polygons(document, images, len(classes) - 1, problems)


def _of_polygons(document: Mapping[str, Any], images: Path, things: int, problems: Problems) -> list[LabelledPicture]:
    """The pictures of a file of instances, each with its outlines; pictures without a thing are background only."""
    categories = sorted(int(category["id"]) for category in document["categories"])
    if len(categories) != things:
        raise ValueError(f"{len(categories)} categories, expected COCO's {things}")
    label_of = {category: label for label, category in enumerate(categories, start=1)}
    sizes = {int(image["id"]): (int(image["width"]), int(image["height"])) for image in document["images"]}
    of_picture: dict[int, list[tuple[float, int, int, tuple[Outline, ...]]]] = {image: [] for image in sizes}
    for place, annotation in enumerate(document["annotations"]):
        image, category = int(annotation["image_id"]), int(annotation["category_id"])
        source = f"annotation {annotation.get('id', '')} of image {image}"
        if image not in of_picture:
            problems.add("metadata", source, "no such image in the file: left out")
            continue
        if category not in label_of:
            problems.add("label mismatch", source, f"no category {category} in the file: left out")
            continue
        try:
            outlines = outlines_of(annotation["segmentation"], sizes[image])
        except ValueError as error:
            problems.add("broken mask", source, f"{error}: left out")
            continue
        of_picture[image].append((-float(annotation.get("area") or 0), place, label_of[category], outlines))
    pictures = []
    ids = picture_ids(str(image["file_name"]) for image in document["images"])
    for described in sorted(document["images"], key=lambda image: int(image["id"])):
        size, name = sizes[int(described["id"])], str(described["file_name"])
        drawn = tuple((label, outlines) for _, _, label, outlines in sorted(of_picture[int(described["id"])]))
        pictures.append(LabelledPicture(ids[name], images / name, size, Outlines(size, drawn)))
    return pictures
