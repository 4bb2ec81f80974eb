"""The data set that is checked: every label with its picture, whatever the format, and what is odd without a model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError, UsageError
from cliploc.formats import LabelledBox, LabelSet, PictureLabels, Size, yolo
from cliploc.formats.reading import FORMATS, UNREADABLE, PictureFinder, in_one_line, read_labels
from cliploc.images.geometry import iou_matrix
from cliploc.images.reading import size_of
from cliploc.runs.picture_files import PictureFile, find_pictures
from cliploc.values import Floats

FOLDERS = "folders of classes"
ANY_FORMAT = f"{FORMATS}, or {FOLDERS}"
OF_LABELS = ("annotations", "labels")  # folders beside which pictures lie
ONE_PIXEL = 1.5  # pixels of a side that is one pixel, however it is rounded
BEYOND_EDGE = "reaches out of the picture"
BEYOND = 1.0  # pixels that a box may reach out of the picture: sets count from 0 or from 1
HALFWAY, STEEPNESS = 0.65, 20.0  # two boxes of one name are one thing more likely than not from this IoU on


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
    """What is checked."""

    format: str  # as its users call it: "COCO"
    root: Path  # of the pictures
    pictures: tuple[LabelledFile, ...]
    failed: dict[str, str]  # picture, as the set names it → why it is not checked
    unnamed: int  # pictures there that the set does not name
    labels: LabelSet


def read_set(labels: Path, pictures: Path | None, out: Path | None, formats: str = ANY_FORMAT) -> DataSet:
    """Reads labels of any of these formats, and finds their pictures: below a folder, or beside the labels."""
    if pictures is None and FOLDERS in formats and _is_class_folders(labels):
        found = find_pictures(labels, out)
        ids = [file.id for file in found.pictures if "/" in file.id]
        read = LabelSet(FOLDERS, tuple(PictureLabels((name,), partial(_whole, name)) for name in ids))
    else:
        read = read_labels(labels, formats)
        folder = labels if labels.is_dir() else labels.absolute().parent
        beside = folder.absolute().parent if folder.name.lower() in OF_LABELS else folder
        found = find_pictures(pictures or beside, out)
    files = {file.id: file.path for file in found.pictures}
    find = PictureFinder(files, read.listed, {}, f"no picture below {found.root} has this name")
    checked, failed = dict[str, LabelledFile](), dict[str, str]()
    for place, entry in enumerate(read.pictures):
        try:
            name = find(entry.names, entry.more)
            if name in checked:
                raise ValueError(f"another picture of the set is {name}, too")
            size = size_of(files[name])
            boxes = tuple(entry.boxes(size, False))
            checked[name] = LabelledFile(name, files[name], size, boxes, entry.size_wh, place)
        except (InputError, *UNREADABLE) as error:
            failed[entry.names[0]] = in_one_line(error)
    if not any(picture.boxes for picture in checked.values()):
        name, reason = next(iter(failed.items()), (str(labels), "it has no label"))
        raise UsageError(f"expected labels of pictures below {found.root}, got none ({name}: {reason}): "
                         "check both paths, or give --pictures")  # fmt: skip
    return DataSet(read.format, found.root, tuple(checked.values()), failed, len(files) - len(checked), read)


def _is_class_folders(labels: Path) -> bool:
    """Whether it is a folder of folders, and not a set in a format that is one."""
    is_set = any((labels / name).exists() for name in yolo.CLASS_LISTS) or any(labels.rglob("*.xml"))
    return labels.is_dir() and not is_set and any(path.is_dir() for path in labels.iterdir())


def _whole(picture: str, size_wh: Size, _: bool) -> Iterator[LabelledBox]:
    """The name of a picture's folder as the label of all of it."""
    yield LabelledBox(picture, PurePosixPath(picture).parent.name, (0.0, 0.0, *size_wh))


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


def doubles(xyxy: Floats, names: npt.NDArray[np.int64]) -> list[tuple[float, int]]:
    """For each of n boxes of a picture: the chance that it is an earlier one of its name again, and which."""
    overlap = np.tril(iou_matrix(xyxy, xyxy).astype(np.float64), -1) * (names[:, None] == names)
    best = [(float(row.max()), int(row.argmax())) for row in overlap]
    return [(float(iou > 0) / (1 + np.exp(-STEEPNESS * (iou - HALFWAY))), first) for iou, first in best]


def spelt_in_two_ways(count: Mapping[str, int]) -> dict[str, str]:
    """Spelling → the most frequent one that differs only in case, spaces, hyphens or a plural's ending."""
    alike: dict[str, list[str]] = defaultdict(list)
    plain = {name: re.sub(r"[\s_-]+", "", name).casefold() or name for name in count}
    for name in sorted(count, key=lambda one: (-count[one], one)):
        key = plain[name]
        singular = key.removesuffix("s")
        alike[singular if len(singular) > 2 and singular in plain.values() else key].append(name)
    return {name: first for first, *others in alike.values() for name in others}
