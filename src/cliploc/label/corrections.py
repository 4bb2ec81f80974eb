"""Corrected sets of other tools, matched with a run, pictures whole or not."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from cliploc.errors import InputError, UsageError
from cliploc.formats import LabelledBox, LabelSet, labelstudio, read_list
from cliploc.formats.reading import FORMATS as FORMATS_OF_SETS
from cliploc.formats.reading import UNREADABLE, PictureFinder, in_one_line, read_labels
from cliploc.images import rle
from cliploc.runs.labelling import Correction

FORMATS = f"what review.html saves, {FORMATS_OF_SETS}"
LEAST_SIDE = 1e-3  # pixels of a box inside its picture
Size: TypeAlias = tuple[int, int]  # width, height


class UnusableError(ValueError):
    """Why a picture's boxes cannot be taken."""


@dataclass(frozen=True)
class Corrections:
    """What a corrected set has for the pictures of a run."""

    form: str  # the format that was read
    pictures: dict[str, Correction]  # picture → its corrected boxes
    problems: dict[str, str]  # picture, as the set names it → why it was left as it is


def read_corrections(
    source: Path | Sequence[Mapping[str, Any]],  # a corrected set, or tasks as Label Studio's JSON has them
    sizes: Mapping[str, Size],  # of the run's pictures, upright
    labels: Sequence[Sequence[str]],  # the names of each label of the run: the label, then its synonyms
    lists: Sequence[Path] = (),  # further lists of files, as exports write them, that tell which file is which picture
    masks: bool = False,  # whether masks are read, and polygons as masks; else only boxes are taken
) -> Corrections:
    """Reads a corrected set."""
    read = read_labels(source, FORMATS) if isinstance(source, Path) else _of_tasks(source)
    find = PictureFinder(sizes, read.listed, {k: v for folder in lists for k, v in read_list(folder).items()})
    known = _label_index(labels)
    corrections, problems, named = dict[str, Correction](), dict[str, str](), Counter[str]()
    for entry in read.pictures:
        try:
            try:
                picture = find(entry.names, entry.more)
            except ValueError as error:
                raise UnusableError(str(error)) from None
            named[picture] += 1
            size = sizes[picture]
            if named[picture] > 1:
                corrections.pop(picture, None)
                raise UnusableError(f"several pictures of the set match {picture}")
            if entry.size_wh not in (None, size):
                width, height = entry.size_wh or size
                raise UnusableError(f"it is {width}×{height} in the set, but was annotated at {size[0]}×{size[1]}")
            corrections[picture] = _checked(entry.boxes(size, masks), size, known, masks)
        except UnusableError as error:
            problems[entry.names[0]] = str(error)
        except (InputError, *UNREADABLE) as error:
            reason = f"its boxes cannot be read as {read.format}'s ({in_one_line(error)}): export the set again"
            problems[entry.names[0]] = reason
    return Corrections(read.format, corrections, problems)


def _of_tasks(tasks: Sequence[Mapping[str, Any]]) -> LabelSet:
    try:
        return labelstudio.read(tasks)
    except UNREADABLE as error:
        raise UsageError(
            f"expected annotated tasks of Label Studio, got something else ({in_one_line(error)})"
        ) from None


def _checked(boxes: Iterable[LabelledBox], size: Size, known: Mapping[str, int], masks: bool) -> Correction:
    """The boxes, clipped to the picture."""
    corners, numbers, codes = [], [], list[str | None]()
    for drawn in boxes:
        if drawn.kind != "box" and drawn.mask is None:
            raise UnusableError(f"a shape in it is a {drawn.kind}, not a box")
        label, mask = drawn.name, drawn.mask and drawn.mask()
        number = known.get(label, known.get(label.casefold()))
        if number is None:
            raise UnusableError(f"{label!r} is not a label of this run")
        box = clipped(drawn.xyxy if mask is None or drawn.kind == "box" else rle.bounds(mask, size[1]), size)
        if box is None:
            raise UnusableError(f"a box of {label!r} is empty, or lies outside of the picture")
        corners.append(box)
        numbers.append(number)
        if mask is not None and not mask[1::2].any():
            raise UnusableError(f"a mask of {label!r} is empty")
        codes.append(None if mask is None else rle.compressed(mask))
    return Correction(corners, numbers, masks=codes if masks else None)


def clipped(xyxy: Sequence[float], size: Size) -> list[float] | None:
    """A box inside the picture, in hundredths of a pixel; None if nothing is left of it."""
    corners = np.array(xyxy, float)
    if not np.isfinite(corners).all():
        return None
    inside = np.clip(corners, 0, [*size, *size]).tolist()
    x0, y0, x1, y1 = (round(value, 2) for value in inside)
    return [x0, y0, x1, y1] if x1 - x0 > LEAST_SIDE and y1 - y0 > LEAST_SIDE else None


def _label_index(labels: Sequence[Sequence[str]]) -> dict[str, int]:
    """Name, also in small letters → label; a label's name comes before a synonym."""
    first = [(names[0], number) for number, names in enumerate(labels)]
    synonyms = [(name, number) for number, names in enumerate(labels) for name in names[1:]]
    index = dict[str, int]()
    for names, spelt in ((first, str), (first, str.casefold), (synonyms, str), (synonyms, str.casefold)):
        for name, number in names:
            index.setdefault(spelt(name), number)
    return index
