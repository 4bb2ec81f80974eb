"""A folder of pictures and a table of boxes: the simplest layout for your own dataset.

Boxes are edges, right and bottom exclusive, in pixels of the picture as it is shown, after its EXIF orientation.
"""

from collections import Counter
from pathlib import Path

from cliploc.errors import UsageError
from cliploc.evaluate.data._infra.candidates import Box, Candidate, Problems
from cliploc.evaluate.data._infra.files import csv_rows
from cliploc.evaluate.data._infra.registration import Found, Split, reader
from cliploc.images.reading import SUFFIXES
from cliploc.values import ClassName

TABLE = "boxes.csv"


@reader(
    "folder",
    title="a plain folder",
    about="pictures and one table of boxes; a picture may have several classes",
    source="yours",
    splits=(
        Split("report", "report", "all of the folder, to report numbers on"),
        Split("tune", "tune", "all of the folder, kept aside to choose thresholds on"),
    ),
    layout=f"""
{TABLE}   path,label,x0,y0,x1,y1: that line, then one line per box; the label
            is a name to look for, cat|kitten with a synonym; pixels from 0,
            right and bottom edge exclusive
PATH        the pictures, below the root
""",
)
def read(root: Path, split: str, problems: Problems) -> Found:  # noqa: ARG001 - both splits are the whole folder
    """Reads the folder. Sample ids are paths, or path/label for a picture with several labels."""
    path = root / TABLE
    rows = csv_rows(path, 6)
    if not rows or rows[0] != ["path", "label", "x0", "y0", "x1", "y1"]:
        raise UsageError(f"expected {path} to begin with the line path,label,x0,y0,x1,y1: write it")
    boxes: dict[tuple[str, str], list[Box]] = {}
    for i, (picture, label, *cells) in enumerate(rows[1:], start=2):
        if not picture or not label:
            raise UsageError(f"{path}, row {i}: expected a path and a label, got {picture!r} and {label!r}: fill it in")
        of_both = boxes.setdefault((picture, label), [])
        if not any(cells):
            continue  # a picture without boxes: an empty annotation, unless another row has a box
        try:
            x0, y0, x1, y1 = map(float, cells)
        except ValueError:
            raise UsageError(
                f"{path}, row {i}: expected four numbers, got {','.join(cells)}: correct the line"
            ) from None
        of_both.append((x0, y0, x1, y1))
    names = sorted({label for _, label in boxes})
    labels = {name: i for i, name in enumerate(names)}
    known = Counter(picture for picture, _ in boxes)
    candidates = [
        Candidate(f"{name}/{label}" if known[name] > 1 else name, root / name, labels[label], of_both, upright=True)
        for (name, label), of_both in sorted(boxes.items())
    ]
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root).as_posix()
        if file.suffix.lower() in SUFFIXES and name not in known:
            problems.add("unannotated picture", name, f"not in {TABLE}: left out")
    classes = [tuple(word.strip() for word in name.split("|")) for name in names]
    return Found(tuple(ClassName(synonyms[0], synonyms) for synonyms in classes), candidates)
