"""A folder in the layout of the public WSOL evaluation (Choe et al. 2020), and the reader of its metadata files.

Boxes are the metadata's numbers, unchanged: edges in original pixels. The public files limit them to width − 1 and
height − 1, so a box over the whole of a 500×375 picture is 0, 0, 499, 374 there.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from cliploc.errors import UsageError
from cliploc.evaluate.data import _base as base
from cliploc.find.prompts import imagenet_classes
from cliploc.formats import Box
from cliploc.values import ClassName, Problem


@base.reader(
    "wsol",
    title="a folder in the WSOL layout",
    about="pictures, original or already resized, with boxes in original pixels",
    source="yours; the metadata files are those of the public WSOL evaluation: github.com/clovaai/wsolevaluation",
    splits=base.WHOLE,
    layout="""
metadata/image_ids.txt     one IMAGE per line: its path below the root
metadata/class_labels.txt  IMAGE,LABEL
metadata/image_sizes.txt   IMAGE,WIDTH,HEIGHT of the original
metadata/localization.txt  IMAGE,X0,Y0,X1,Y1 in original pixels, one per line
synsets.csv                label,wnid,synset_words: one class per line
IMAGE                      the pictures, of any size
""",
)
def read(root: Path, split: str, problems: base.Problems) -> base.Annotations:  # noqa: ARG001 - both splits are the whole folder
    """Reads the folder. Sample ids are the pictures' paths below the root."""
    _, listed = read_metadata(root / "metadata", problems.append)
    candidates = [replace(one, path=root / one.path, resized=True) for one in listed]
    path = root / "synsets.csv"
    rows = base.csv_rows(path, 3)
    if not rows or rows[0] != ["label", "wnid", "synset_words"]:
        raise UsageError(f"expected {path} to begin with the line label,wnid,synset_words: write it")
    if [row[0] for row in rows[1:]] != [str(i) for i in range(len(rows) - 1)]:
        raise UsageError(f"expected the labels 0, 1, 2 … in {path}, in order: sort and complete it")
    known = {class_name.wnid: class_name for class_name in imagenet_class_names()}
    classes = []
    for _, wnid, words in rows[1:]:
        synonyms = tuple(word.strip() for word in words.split(","))
        classes.append(known.get(wnid) or ClassName(synonyms[0], synonyms, wnid))
    return base.Annotations(tuple(classes), candidates)


def read_metadata(folder: str | Path, leave_out: Callable[[Problem], None]) -> tuple[list[str], list[base.Candidate]]:
    """All ids of the four WSOL metadata files, and the images in all, unchanged; `leave_out` gets every problem."""

    def refuse(image_id: str, reason: str) -> None:
        leave_out(Problem("metadata", image_id, reason))

    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"expected a folder of metadata, found none at {folder}: check the path")
    listed = [row[0] for row in base.csv_rows(folder / "image_ids.txt", 1)]
    if not listed:
        raise UsageError(f"expected image ids in {folder / 'image_ids.txt'}, found none: check the file")
    labels: dict[str, tuple[float, ...]] = {}
    sizes: dict[str, tuple[float, ...]] = {}
    for table, path, count in ((labels, folder / "class_labels.txt", 1), (sizes, folder / "image_sizes.txt", 2)):
        for key, values in base.numbers(path, count):
            if table.setdefault(key, values) != values:
                refuse(key, f"two different lines in {path.name}, the first is used: correct the file")
    boxes: dict[str, list[Box]] = {}
    for key, box in base.numbers(folder / "localization.txt", 4, float):
        boxes.setdefault(key, []).append(cast(Box, box))
    for key, count in Counter(listed).items():
        if count > 1:
            refuse(key, f"{count} times in image_ids.txt: counted once")
    files: Mapping[str, Mapping[str, object]]
    files = {"class_labels": labels, "image_sizes": sizes, "localization": boxes}
    ids = dict.fromkeys(listed)
    for name, table_of in files.items():
        for key in sorted(table_of.keys() - ids.keys()):
            refuse(key, f"in {name}.txt, but not in image_ids.txt: add it or remove it")
    found = []
    for key in ids:
        if missing := [name for name, table_of in files.items() if key not in table_of]:
            refuse(key, f"not in {missing[0]}.txt: add its line")
        elif not base.safe_id(key):
            refuse(key, "expected an image id that stays inside the folder of maps: use a relative path")
        elif min(sizes[key]) < 1:
            refuse(key, f"expected a size of at least 1×1, got {base.by(sizes[key])}: correct image_sizes.txt")
        else:
            width, height = map(int, sizes[key])
            found.append(base.Candidate(key, Path(key), int(labels[key][0]), boxes[key], (width, height)))
    return [*ids], found


def metadata_folder(root: Path, places: Iterable[str]) -> Path | None:
    """The first of these folders below the root with metadata, or None."""
    return base.first_folder(root, [place for place in places if (root / place / "image_ids.txt").is_file()])


def imagenet_class_names() -> tuple[ClassName, ...]:
    """ILSVRC's classes in the order of their labels, with the names and synonyms that prompts use."""
    return tuple(
        ClassName(class_name.name, (class_name.name, *class_name.synonyms), class_name.wnid)
        for class_name in imagenet_classes()
    )


def read_predictions(path: str | Path, leave_out: Callable[[Problem], None]) -> dict[str, list[int]]:
    """Reads predictions, lines `image_id,class,class,…`, best first; a first line with image_id is skipped."""
    path = Path(path)
    rows = base.csv_rows(path)
    if rows and rows[0][0] == "image_id":
        rows = rows[1:]
    if not rows:
        raise UsageError(f"expected predictions in {path}, found none: write one line image_id,class,class,… per image")
    ranked: dict[str, list[int]] = {}
    for i, (image_id, *cells) in enumerate(rows, start=1):
        try:
            classes = [int(cell) for cell in cells]
        except ValueError:
            raise UsageError(f"{path}, row {i}: expected classes as integers, got {','.join(cells)}") from None
        if not classes or len(cells) != len(rows[0]) - 1:
            expected = f"{len(rows[0]) - 1} classes as in the first row" if len(rows[0]) > 1 else "at least one class"
            raise UsageError(f"{path}, row {i}: expected {expected}, got {len(classes)}: correct the line")
        if ranked.setdefault(image_id, classes) != classes:
            leave_out(Problem("prediction", image_id, "two different lines, the first is used: correct the file"))
    return ranked
