"""The data set that is checked, in a format or in folders of classes; and which of its labels are double."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from cliploc.formats import LabelledBox, LabelSet, PictureLabels, Size, yolo
from cliploc.formats.reading import FORMATS, read_labels
from cliploc.images.geometry import iou_matrix
from cliploc.runs.labelled_set import DataSet, with_pictures
from cliploc.runs.picture_files import find_pictures
from cliploc.values import Floats

FOLDERS = "folders of classes"
ANY_FORMAT = f"{FORMATS}, or {FOLDERS}"
OF_LABELS = ("annotations", "labels")  # folders beside which pictures lie
HALFWAY, STEEPNESS = 0.65, 20.0  # two boxes of one name are one thing more likely than not from this IoU on


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
    return with_pictures(read, found)


def _is_class_folders(labels: Path) -> bool:
    """Whether it is a folder of folders, and not a set in a format that is one."""
    is_set = any((labels / name).exists() for name in yolo.CLASS_LISTS) or any(labels.rglob("*.xml"))
    return labels.is_dir() and not is_set and any(path.is_dir() for path in labels.iterdir())


def _whole(picture: str, size_wh: Size, _: bool) -> Iterator[LabelledBox]:
    """The name of a picture's folder as the label of all of it."""
    yield LabelledBox(picture, PurePosixPath(picture).parent.name, (0.0, 0.0, *size_wh))


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
