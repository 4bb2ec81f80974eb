"""LVIS v1 (Gupta et al. 2019): 1,203 categories on COCO's pictures; a sample for each category in each picture.

Its pictures are not annotated with every category. Of each it is known which are there (`annotations`) and which are
not (`neg_category_ids`), and only these are asked where absent names are asked. LVIS's own evaluation ignores boxes
beyond the true ones of a category in `not_exhaustive_category_ids`; here they count as wrong.
"""

from dataclasses import replace
from pathlib import Path, PurePosixPath

from cliploc.errors import UsageError
from cliploc.evaluate.data._base import HELP, Annotations, Problems, Split, coco_document, reader
from cliploc.evaluate.data.coco import found_in
from cliploc.formats import coco
from cliploc.values import ClassName


@reader(
    "lvis",
    title="LVIS v1",
    about="1,203 categories on COCO's pictures, several per picture, few of them exhaustive",
    source="lvisdataset.org (v1 annotations) and cocodataset.org (2017 val and train images)",
    splits=(Split("val", "report", "19,809 pictures"), Split("train", "tune", "100,170 pictures")),
    layout="""
lvis_v1_val.json             images, annotations, categories
                             (also: annotations/, or annotations/lvis_v1/)
train2017/000000391895.jpg   the pictures of COCO, in the folders that coco_url
val2017/000000397133.jpg     names; val has pictures of both
""",
)
def read(root: Path, split: str, problems: Problems) -> Annotations:
    """Reads a split. Sample ids are picture and category id: val2017/000000397133/62."""
    places = [root / place / f"lvis_v1_{split}.json" for place in ("", "annotations", "annotations/lvis_v1")]
    path = next((path for path in places if path.is_file()), places[0])
    document = coco_document(path)
    if not (root / "train2017").is_dir() and not (root / "val2017").is_dir():
        raise UsageError(f"expected COCO's pictures in {root}/train2017 and {root}/val2017; found none: {HELP}")
    names: dict[coco.Id, ClassName] = {}
    for category in document.categories:
        # Its name and synonyms, such as alarm_clock, with spaces for underscores.
        words = (word.replace("_", " ").replace("/", " or ") for word in (category.name, *category.synonyms))
        synonyms = tuple(dict.fromkeys(words))
        names[category.id] = ClassName(synonyms[0], synonyms)
    labels = {category: label for label, category in enumerate(sorted(names, key=coco.order))}
    for image in document.images:
        # The last folder and the file's name of http://images.cocodataset.org/val2017/000000397133.jpg.
        parts = PurePosixPath(image.coco_url).parts[-2:]
        if len(parts) < 2 or ".." in parts:
            raise UsageError(f"{path} is not in LVIS's format (coco_url {image.coco_url!r}): download it again")
        image.file_name = "/".join(parts)
    absent = {
        root / image.file_name: frozenset(labels[kind] for kind in image.neg_category_ids if kind in labels)
        for image in document.images
    }
    return replace(found_in(document, names, root, problems), absent=absent)
