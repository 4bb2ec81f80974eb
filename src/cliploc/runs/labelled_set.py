"""A set of labels and its pictures, brought together: every label with its picture, whatever the format."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cliploc.errors import InputError, UsageError
from cliploc.formats import LabelledBox, LabelSet, Size
from cliploc.formats.reading import UNREADABLE, PictureFinder, in_one_line
from cliploc.images.reading import size_of
from cliploc.runs.picture_files import FoundPictures, PictureFile
from cliploc.values import Floats

ONE_PIXEL = 1.5  # pixels of a side that is one pixel, however it is rounded
BEYOND_EDGE = "reaches out of the picture"
BEYOND = 1.0  # pixels that a box may reach out of the picture: sets count from 0 or from 1


@dataclass(frozen=True)
class LabelledFile(PictureFile):
    """A picture with its labels."""

    size_wh: Size  # upright
    boxes: tuple[LabelledBox, ...]
    listed_wh: Size | None  # its size, if the set says it
    place: int  # in the set, from 0

    @cached_property
    def readable(self) -> list[int]:
        """Which boxes lie in the picture at least in part."""
        return [i for i, box in enumerate(self.boxes) if odd_box(box, self.size_wh) in (None, BEYOND_EDGE)]

    @cached_property
    def xyxy(self) -> Floats:
        """The readable boxes, cut off at the picture's edges: `[n, 4]`."""
        boxes = np.array([self.boxes[i].xyxy for i in self.readable], float).reshape(-1, 4)
        return np.asarray(np.clip(boxes, 0, self.size_wh * 2), float)


@dataclass(frozen=True)
class DataSet:
    """A set of labels with its pictures."""

    format: str  # as its users call it: "COCO"
    root: Path  # of the pictures
    pictures: tuple[LabelledFile, ...]
    failed: dict[str, str]  # picture, as the set names it → why it is not checked
    unnamed: int  # pictures there that the set does not name
    labels: LabelSet


def with_pictures(labels: LabelSet, found: FoundPictures) -> DataSet:
    """Finds the pictures that the labels are of; those that cannot be used are named with the reason."""
    files = {file.id: file.path for file in found.pictures}
    find = PictureFinder(files, labels.listed, {}, f"no picture below {found.root} has this name")
    pictures, failed = dict[str, LabelledFile](), dict[str, str]()
    for place, entry in enumerate(labels.pictures):
        try:
            name = find(entry.names, entry.more)
            if name in pictures:
                raise ValueError(f"another picture of the set is {name}, too")
            size = size_of(files[name])
            boxes = tuple(entry.boxes(size, False))
            pictures[name] = LabelledFile(name, files[name], size, boxes, entry.size_wh, place)
        except (InputError, *UNREADABLE) as error:
            failed[entry.names[0]] = in_one_line(error)
    if not any(picture.boxes for picture in pictures.values()):
        name, reason = next(iter(failed.items()), ("the set", "it has no label"))
        raise UsageError(f"expected labels below {found.root}, got none ({name}: {reason}): check both paths")
    return DataSet(labels.format, found.root, tuple(pictures.values()), failed, len(files) - len(pictures), labels)


def odd_box(box: LabelledBox, size_wh: Size) -> str | None:
    """What is wrong with a box, whatever it contains; None: nothing."""
    x0, y0, x1, y1 = box.xyxy
    width, height = size_wh
    sides = x1 - x0, y1 - y0
    reasons = {
        "an edge is not a number": not np.isfinite(box.xyxy).all(),
        "without area": min(sides) <= 0,
        "outside the picture": x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height,
        BEYOND_EDGE: min(x0, y0) < -BEYOND or x1 > width + BEYOND or y1 > height + BEYOND,
        "of one pixel": max(sides) <= ONE_PIXEL,
        "one pixel wide": sides[0] <= ONE_PIXEL,
        "one pixel high": sides[1] <= ONE_PIXEL,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
