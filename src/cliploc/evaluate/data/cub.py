"""CUB-200-2011 (Wah et al. 2011): birds, one per picture, in the official text files.

A box is x, y, width, height with x and y from 0: edges x, y, x + width, y + height. The WSOL evaluation's metadata have
the same edges (limited to width − 1 and height − 1 of the picture).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from cliploc.errors import UsageError
from cliploc.evaluate.data._base import Candidate, Found, Problems, Split, reader, words
from cliploc.formats import Box
from cliploc.values import ClassName

T = TypeVar("T")
FLAGS = ("0", "1")  # no, yes


@reader(
    "cub",
    title="CUB-200-2011",
    about="11,788 pictures of 200 kinds of birds, one box each",
    source="vision.caltech.edu/datasets/cub_200_2011 (CUB_200_2011.tgz)",
    splits=(
        Split("test", "report", "5,794 pictures"),
        Split("train", "tune", "5,994 pictures; the WSOL protocol itself tunes on CUBV2 instead"),
    ),
    layout="""
CUB_200_2011/images.txt               IMAGE_ID PATH    (or all below the root)
CUB_200_2011/bounding_boxes.txt       IMAGE_ID X Y WIDTH HEIGHT
CUB_200_2011/image_class_labels.txt   IMAGE_ID CLASS_ID
CUB_200_2011/train_test_split.txt     IMAGE_ID 1 for train, 0 for test
CUB_200_2011/classes.txt              CLASS_ID 001.Black_footed_Albatross
CUB_200_2011/images/PATH              the pictures
""",
)
def read(root: Path, split: str, problems: Problems) -> Found:
    """Reads a split. Sample ids are paths below images/, as in the WSOL metadata."""
    base = root / "CUB_200_2011" if (root / "CUB_200_2011").is_dir() else root
    classes, labels = [], {}  # with their folders as ids; class id → label
    for label, (class_id, folder) in enumerate(words(base / "classes.txt", 2)):
        name = folder.split(".", 1)[-1].replace("_", " ")
        classes.append(ClassName(name, (name,), folder))
        labels[class_id] = label
    paths = _table(base / "images.txt", 2, lambda cells: cells[0], problems)
    boxes = _table(base / "bounding_boxes.txt", 5, _box, problems)
    of_class = _table(base / "image_class_labels.txt", 2, lambda cells: cells[0], problems)
    is_train = _table(base / "train_test_split.txt", 2, lambda cells: bool(FLAGS.index(cells[0])), problems)
    candidates = []
    for image_id, path in paths.items():
        if image_id not in is_train or image_id not in of_class:
            name = "image_class_labels.txt" if image_id in is_train else "train_test_split.txt"
            problems.add("label mismatch", path, f"image {image_id} is not in {name}: left out")
            continue
        if is_train[image_id] != (split == "train"):
            continue
        of_image = labels.get(of_class[image_id])
        if of_image is None or classes[of_image].wnid != path.split("/")[0]:
            expected = "none of classes.txt" if of_image is None else classes[of_image].wnid
            problems.add(
                "label mismatch", path, f"labelled {of_class[image_id]} ({expected}), not as its folder: left out"
            )
            continue
        image_boxes = [boxes[image_id]] if image_id in boxes else []
        candidates.append(Candidate(path, base / "images" / path, of_image, image_boxes))
    for image_id in sorted(boxes.keys() - paths.keys()):
        problems.add("metadata", image_id, "in bounding_boxes.txt, but not in images.txt: add it or remove it")
    return Found(tuple(classes), candidates)


def _table(path: Path, count: int, parse: Callable[[Sequence[str]], T], problems: Problems) -> dict[str, T]:
    """Image id → the parsed rest of its line; the first line of an id counts."""
    table: dict[str, T] = {}
    for key, *cells in words(path, count):
        if key in table:
            problems.add("duplicate id", key, f"twice in {path.name}: the first line is used")
            continue
        try:
            table[key] = parse(cells)
        except ValueError:
            raise UsageError(f"{path}: expected numbers for image {key}, got {' '.join(cells)}: correct it") from None
    return table


def _box(cells: Sequence[str]) -> Box:
    x, y, width, height = map(float, cells)
    return x, y, x + width, y + height
