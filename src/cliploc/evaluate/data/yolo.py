"""YOLO's layout, as Ultralytics reads it: a sample for each class in each picture.

A line of a picture's text is a class and its box's centre and size, or the corners of a polygon, whose box counts; all
as shares of the picture as it is shown, after its EXIF orientation.
"""

from itertools import chain
from pathlib import Path

from cliploc.errors import InputError, UsageError
from cliploc.evaluate.data import _base as base
from cliploc.formats import Box
from cliploc.formats.yolo import CLASS_LISTS, class_names, read_boxes
from cliploc.support.files import files_below
from cliploc.values import ClassName

ALIASES = {"val": ("val", "valid", "validation")}  # split → names of its folders


@base.reader(
    "yolo",
    title="YOLO's layout",
    about="pictures and a text file of boxes for each; several classes per picture",
    source="yours; Ultralytics, Roboflow, CVAT and Label Studio export it",
    splits=(
        *base.WHOLE,
        base.Split("train", "tune", "folders train/"),
        base.Split("val", "report", "folders val/ or valid/"),
        base.Split("test", "report", "folders test/"),
    ),
    layout="""
data.yaml              names: [cat, dog]; or classes.txt, one name per line
images/train/a.jpg     the pictures (also: train/images/, images/)
labels/train/a.txt     CLASS X Y WIDTH HEIGHT, one box per line: its centre and
                       size as shares of the picture; or a polygon's corners:
                       CLASS X1 Y1 X2 Y2 X3 Y3 …
""",
)
def read(root: Path, split: str, problems: base.Problems) -> base.Annotations:
    """Reads a split. Sample ids are the picture's path and the number of the class: images/train/a.jpg/0."""
    described = next((root / name for name in CLASS_LISTS if (root / name).is_file()), None)
    if described is None:
        raise UsageError(f"expected data.yaml or classes.txt in {root}, found none: {base.HELP}")
    try:
        with base.reading(described):
            names = class_names(described)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"[:200]
        raise UsageError(f"expected names of classes in {described} ({why}): export the set again") from None
    labels = {names[number]: label for label, number in reversed([*enumerate(sorted(names))])}  # a name's first
    candidates = []
    linked = [folder for folder in root.rglob("labels") if folder.is_symlink()]  # which a walk does not enter
    for text in sorted({*chain.from_iterable(map(files_below, [root, *linked]))}):
        folders = text.relative_to(root).parts[:-1]
        if text.suffix != ".txt" or "labels" not in folders:
            continue
        if split in ("train", "val", "test") and not {*folders} & {*ALIASES.get(split, (split,))}:
            continue
        path = _picture_of(root, text)
        name = path.relative_to(root).as_posix()
        try:
            size = base.turned_wh(*base.picture_header(path))
        except InputError:
            size = (1, 1)  # the check of the samples says why it cannot be read
        boxes: dict[int, list[Box]] = {}
        try:
            for box in read_boxes(text, names, size):
                boxes.setdefault(labels[box.name], []).append(box.xyxy)
        except (OSError, ValueError) as error:
            problems.add("broken annotation", name, f"{text.name}: {error}: left out")
            continue
        if not boxes:
            problems.add("empty annotation", name, "no box: left out")
        for label in sorted(boxes):
            candidates.append(base.Candidate(f"{name}/{label}", path, label, boxes[label], upright=True))
    return base.Annotations(
        tuple(ClassName(names[number], (names[number],), str(number)) for number in sorted(names)), candidates
    )


def _picture_of(root: Path, text: Path) -> Path:
    """The picture of a text: in the folder images beside the last folder labels of its path."""
    parts = list(text.relative_to(root).parts)
    parts[len(parts) - 1 - parts[::-1].index("labels")] = "images"
    beside = root.joinpath(*parts)
    return base.picture_of([beside.parent], beside.stem)
