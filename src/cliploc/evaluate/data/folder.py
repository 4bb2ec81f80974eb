"""A folder of pictures and a table of boxes: the simplest layout for your own dataset.

Boxes are edges, right and bottom exclusive, in pixels of the picture as it is shown, after its EXIF orientation.
"""

from pathlib import Path

from cliploc.errors import UsageError
from cliploc.evaluate.data._base import WHOLE, Annotations, Candidate, Problems, reader, reading
from cliploc.formats import Box, table
from cliploc.images.reading import SUFFIXES
from cliploc.values import ClassName

TABLE = "boxes.csv"


@reader(
    "folder",
    title="a plain folder",
    about="pictures and one table of boxes; a picture may have several classes",
    source="yours",
    splits=WHOLE,
    layout=f"""
{TABLE}   path,label,x0,y0,x1,y1: that line, then one line per box; the label
            is a name to look for, cat|kitten with a synonym; pixels from 0,
            right and bottom edge exclusive
PATH        the pictures, below the root
""",
)
def read(root: Path, split: str, problems: Problems) -> Annotations:  # noqa: ARG001 - both splits are the whole folder
    """Reads the folder. Sample ids are paths, or path/label for a picture with several labels."""
    with reading(root / TABLE):
        try:
            pictures = table.read(root / TABLE).pictures
        except ValueError as error:
            raise UsageError(f"{root / TABLE}: {error}") from None
    boxes: dict[str, dict[str, list[Box]]] = {}  # picture → label → its boxes
    for picture in pictures:
        of_picture = boxes[picture.names[0]] = {}
        for box in picture.boxes((0, 0), False):
            of_picture.setdefault(box.name, []).append(box.xyxy)
        if not of_picture:
            problems.add("empty annotation", picture.names[0], "no box: left out")
    names = sorted({label for of_picture in boxes.values() for label in of_picture})
    labels = {name: i for i, name in enumerate(names)}
    candidates = [
        Candidate(f"{name}/{label}" if len(of_picture) > 1 else name, root / name, labels[label], xyxy, upright=True)
        for name, of_picture in sorted(boxes.items())
        for label, xyxy in sorted(of_picture.items())
    ]
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root).as_posix()
        if file.suffix.lower() in SUFFIXES and name not in boxes:
            problems.add("unannotated picture", name, f"not in {TABLE}: left out")
    classes = [tuple(word.strip() for word in name.split("|")) for name in names]
    return Annotations(tuple(ClassName(synonyms[0], synonyms) for synonyms in classes), candidates)
