"""PartImageNet (He et al. 2022): 40 parts of 158 ImageNet classes, in COCO's JSON.

A category is a part of a kind of thing, such as "Quadruped Head". Of a part that occurs several times in a picture,
every instance is a box.
"""

from pathlib import Path

from cliploc.evaluate.data._base import Annotations, Problems, Split, coco_document, needed_folder, reader
from cliploc.evaluate.data.coco import found_in
from cliploc.formats import coco
from cliploc.values import ClassName


@reader(
    "partimagenet",
    title="PartImageNet",
    about="24,095 pictures of 158 ImageNet classes with boxes of 40 parts, such as quadruped head",
    source="github.com/TACJu/PartImageNet",
    splits=(
        Split("test", "report", "4,598 pictures of 30 classes"),
        Split("val", "tune", "2,957 pictures of 19 other classes"),
        Split("train", "tune", "16,540 pictures of 109 other classes"),
    ),
    layout="""
annotations/test/test.json   images, annotations, categories, as COCO's
                             (also: annotations/test.json, or test.json)
images/test/*.JPEG           the pictures (also: test/)
""",
)
def read(root: Path, split: str, problems: Problems) -> Annotations:
    """Reads a split. Sample ids are picture and category id: n01440764_10043/20."""
    places = [root / place / f"{split}.json" for place in (f"annotations/{split}", "annotations", "")]
    path = next((path for path in places if path.is_file()), places[0])
    document = coco_document(path)
    pictures = needed_folder(root, (f"images/{split}", split), "pictures")
    names: dict[coco.Id, ClassName] = {}
    for category in document.categories:  # "quadruped head" of Quadruped Head
        words = " ".join(category.name.replace("_", " ").lower().split())
        names[category.id] = ClassName(words, (words,))
    return found_in(document, names, pictures, problems)
