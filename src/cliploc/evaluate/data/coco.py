"""COCO (Lin et al. 2014) and other datasets in its JSON format: a sample for each category in each picture.

A bbox is x, y, width, height: edges x, y, x + width, y + height, counted from 0. Boxes of crowds (iscrowd 1: one box
for many things) are left out, and so is a category that is only a crowd in a picture; COCO's evaluation ignores them
too. They are listed as problems of the kind "crowd", which is by design.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cliploc.evaluate.data._infra.candidates import Box, Candidate, Problems, picture_ids
from cliploc.evaluate.data._infra.files import coco_format, json_object, needed_folder
from cliploc.evaluate.data._infra.registration import Found, Split, reader
from cliploc.values import ClassName


@reader(
    "coco",
    title="COCO",
    about="80 categories, several per picture; or your own in COCO's JSON",
    source="cocodataset.org (2017 val and train images, 2017 train/val annotations)",
    splits=(
        Split("val2017", "report", "5,000 pictures"),
        Split("train2017", "tune", "118,287 pictures"),
    ),
    layout="""
annotations/instances_val2017.json   images, annotations, categories
val2017/000000000139.jpg             the pictures (also: images/val2017/)
""",
)
def read(root: Path, split: str, problems: Problems) -> Found:
    """Reads a split. Sample ids are picture and category id: 000000000139/62; of a.jpg beside a.png a.jpg/62."""
    path = root / "annotations" / f"instances_{split}.json"
    document = json_object(path)
    pictures = needed_folder(root, (split, f"images/{split}"), "pictures")
    with coco_format(path, "export"):
        classes = {
            int(category["id"]): ClassName(category["name"], (category["name"],)) for category in document["categories"]
        }
        return found_in(document, classes, pictures, lambda image: str(image["file_name"]), problems)


def found_in(
    document: Mapping[str, Any],
    names: Mapping[int, ClassName],
    pictures: Path,
    place: Callable[[Mapping[str, Any]], str],
    problems: Problems,
) -> Found:
    """What a document in COCO's format holds.

    Args:
        names: category id → its names.
        place: the path of an image's file, below the folder of pictures.
    """
    labels = {category: label for label, category in enumerate(sorted(names))}
    classes = tuple(replace(names[category], wnid=str(category)) for category in labels)
    images: dict[int, Mapping[str, Any]] = {}
    for described in document["images"]:
        if images.setdefault(int(described["id"]), described) is not described:
            reason = f"image {described['id']} is there twice: the first is used"
            problems.add("duplicate id", place(described), reason)
    boxes: dict[tuple[int, int], list[Box]] = {}  # of each image and category
    left_out: set[tuple[int, int]] = set()  # those with a crowd, or without a box
    seen = set()
    for described in document["annotations"]:
        image, category = int(described["image_id"]), int(described["category_id"])
        source = f"annotation {described.get('id', '')} of image {image}"
        if "id" in described and described["id"] in seen:
            problems.add("duplicate id", source, "its id is there twice: left out")
            continue
        seen.add(described.get("id"))
        if image not in images:
            problems.add("metadata", source, "no such image in the file: left out")
        elif category not in labels:
            problems.add("label mismatch", source, f"no category {category} in the file: left out")
        elif described.get("iscrowd", 0):
            problems.add("crowd", source, "a crowd: its box is left out")
            left_out.add((image, category))
        elif not described.get("bbox"):
            problems.add("empty annotation", source, "no bbox: left out")
            left_out.add((image, category))
        else:
            x, y, width, height = map(float, described["bbox"])
            boxes.setdefault((image, category), []).append((x, y, x + width, y + height))
    ids = picture_ids(place(image) for image in images.values())
    candidates = []
    for (image, category), of_both in sorted(boxes.items()):
        name = place(images[image])
        size = (int(images[image]["width"]), int(images[image]["height"]))
        candidates.append(Candidate(f"{ids[name]}/{category}", pictures / name, labels[category], of_both, size))
    unclear = {(pictures / place(images[image_id]), labels[kind]) for image_id, kind in left_out}
    return Found(classes, candidates, frozenset(unclear))
