"""COCO (Lin et al. 2014) and other datasets in its JSON format: a sample for each category in each picture.

A bbox is x, y, width, height: edges x, y, x + width, y + height, counted from 0. Boxes of crowds (iscrowd 1: one box
for many things) are left out, and so is a category that is only a crowd in a picture; COCO's evaluation ignores them
too. They are listed as problems of the kind "crowd", which is by design.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from cliploc.evaluate.data import _base as base
from cliploc.formats import Box, coco
from cliploc.values import ClassName


@base.reader(
    "coco",
    title="COCO",
    about="80 categories, several per picture; or your own in COCO's JSON",
    source="cocodataset.org (2017 val and train images, 2017 train/val annotations)",
    splits=base.OF_COCO,
    layout="""
annotations/instances_val2017.json   images, annotations, categories
val2017/000000000139.jpg             the pictures (also: images/val2017/)
""",
)
def read(root: Path, split: str, problems: base.Problems) -> base.Annotations:
    """Reads a split. Sample ids are picture and category id: 000000000139/62; of a.jpg beside a.png a.jpg/62."""
    document = base.coco_document(root / "annotations" / f"instances_{split}.json", "export")
    pictures = base.needed_folder(root, (split, f"images/{split}"), "pictures")
    names = {category.id: ClassName(category.name, (category.name,)) for category in document.categories}
    return found_in(document, names, pictures, problems)


def things_in(
    document: coco.Document, labels: Mapping[coco.Id, int], problems: base.Problems
) -> Iterator[tuple[coco.Annotation, str]]:
    """The annotations of the document's pictures and of these categories, each once, and their names in problems."""
    images, ids = {image.id for image in document.images}, set()
    for thing in document.annotations:
        source = f"annotation {'' if thing.id is None else thing.id} of image {thing.image_id}"
        if thing.id is not None and thing.id in ids:
            problems.add("duplicate id", source, "its id is there twice: left out")
        elif thing.image_id not in images:
            problems.add("metadata", source, "no such image in the file: left out")
        elif thing.category_id not in labels:
            problems.add("label mismatch", source, f"no category {thing.category_id} in the file: left out")
        else:
            yield thing, source
        ids.add(thing.id)


def found_in(
    document: coco.Document, names: dict[coco.Id, ClassName], pictures: Path, problems: base.Problems
) -> base.Annotations:
    """What a document in COCO's format holds; `names`: category id → its names."""
    labels = {category: label for label, category in enumerate(sorted(names, key=coco.order))}
    classes = tuple(replace(names[category], wnid=str(category)) for category in labels)
    images: dict[coco.Id, coco.CocoImage] = {}
    for image in document.images:
        if images.setdefault(image.id, image) is not image:
            problems.add("duplicate id", image.file_name, f"image {image.id} is there twice: the first is used")
    boxes: dict[tuple[coco.Id, coco.Id], list[Box]] = {}  # of each image and category
    left_out: set[tuple[coco.Id, coco.Id]] = set()  # those with a crowd, or without a box
    for thing, source in things_in(document, labels, problems):
        key = thing.image_id, thing.category_id
        if thing.iscrowd:
            problems.add("crowd", source, "a crowd: its box is left out")
            left_out.add(key)
        elif not thing.bbox:
            problems.add("empty annotation", source, "no bbox: left out")
            left_out.add(key)
        else:
            boxes.setdefault(key, []).append(thing.xyxy)
    stems = base.picture_ids(image.file_name for image in images.values())
    candidates = []
    for (image_id, category), of_both in sorted(boxes.items(), key=lambda entry: [*map(coco.order, entry[0])]):
        name, size = images[image_id].file_name, images[image_id].size_wh
        candidates.append(base.Candidate(f"{stems[name]}/{category}", pictures / name, labels[category], of_both, size))
    unclear = {(pictures / images[image_id].file_name, labels[category]) for image_id, category in left_out}
    return base.Annotations(classes, candidates, frozenset(unclear))
