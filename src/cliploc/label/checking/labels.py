"""The data set that is checked: every label with its picture, whatever the format. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cliploc.errors import InputError, UsageError
from cliploc.formats import LabelledBox, LabelSet, Size, yolo
from cliploc.formats.reading import FORMATS, UNREADABLE, PictureFinder, in_one_line, read_labels
from cliploc.images.reading import size_of
from cliploc.runs.picture_files import FoundPictures, PictureFile, find_pictures

FOLDERS = "folders of classes"
ALSO_FOLDERS = f"{FORMATS}, or {FOLDERS}"
OF_LABELS = ("annotations", "labels")  # folders beside which pictures lie
WHOLE = "picture"  # the kind of a label of a whole picture


@dataclass(frozen=True)
class LabelledFile:
    """A picture with its labels."""

    file: PictureFile
    size_wh: Size  # upright
    boxes: tuple[LabelledBox, ...]
    said_wh: Size | None = None  # its size, if the set says it


@dataclass(frozen=True)
class DataSet:
    """What is checked."""

    labels: Path
    format: str  # as its users call it: "COCO"
    root: Path  # of the pictures
    pictures: tuple[LabelledFile, ...]
    failed: dict[str, str]  # picture, as the set names it → why it is not checked
    notes: tuple[str, ...]


def read_set(labels: Path, pictures: Path | None, out: Path | None) -> DataSet:
    """Reads labels of any format, and finds their pictures: below a folder, or beside the labels."""
    if pictures is None and is_class_folders(labels):
        found = find_pictures(labels, out)
        return _checked(labels, FOLDERS, found, *_of_folders(found))
    read = read_labels(labels, ALSO_FOLDERS)
    found = find_pictures(_beside(labels) if pictures is None else pictures, out)
    return _checked(labels, read.format, found, *_of_set(read, found))


def is_class_folders(labels: Path) -> bool:
    """Whether a path is a folder of folders with pictures, not a set in a format of files."""
    if not labels.is_dir() or any((labels / name).exists() for name in yolo.CLASS_LISTS):
        return False
    return next(labels.rglob("*.xml"), None) is None and any(path.is_dir() for path in labels.iterdir())


def _beside(labels: Path) -> Path:
    folder = labels if labels.is_dir() else labels.absolute().parent
    return folder.absolute().parent if folder.name.lower() in OF_LABELS else folder


def _of_folders(found: FoundPictures) -> tuple[list[LabelledFile], dict[str, str], int]:
    """Each picture with the name of its folder as the label of all of it."""
    pictures, failed, loose = list[LabelledFile](), dict[str, str](), 0
    for file in found.pictures:
        if not (name := PurePosixPath(file.id).parent.name):
            loose += 1
            continue
        try:
            width, height = size_of(file.path)
            box = LabelledBox(file.id, name, (0.0, 0.0, float(width), float(height)), kind=WHOLE)
            pictures.append(LabelledFile(file, (width, height), (box,)))
        except InputError as error:
            failed[file.id] = str(error).partition(": ")[2]
    return pictures, failed, loose


def _of_set(read: LabelSet, found: FoundPictures) -> tuple[list[LabelledFile], dict[str, str], int]:
    """The pictures of a set that are there, why others are not checked, and how many the set does not name."""
    files = {file.id: file for file in found.pictures}
    find = PictureFinder(files, read.listed, {}, f"no picture below {found.root} has this name")
    pictures, failed = dict[str, LabelledFile](), dict[str, str]()
    for entry in read.pictures:
        name = entry.names[0]
        try:
            file = files[find(entry.names, entry.more)]
            if file.id in pictures:
                raise ValueError(f"another picture of the set is {file.id}, too")
            size = size_of(file.path)
            pictures[file.id] = LabelledFile(file, size, tuple(entry.boxes(size, False)), entry.size_wh)
        except InputError as error:
            failed[name] = str(error).partition(": ")[2]
        except UNREADABLE as error:
            failed[name] = in_one_line(error)
    return list(pictures.values()), failed, len(files.keys() - pictures.keys())


def _checked(
    labels: Path,
    form: str,
    found: FoundPictures,
    pictures: Sequence[LabelledFile],
    failed: dict[str, str],
    unnamed: int,
) -> DataSet:
    if not pictures:
        name, reason = next(iter(failed.items()), (str(found.root), "it has no labelled picture"))
        raise UsageError(f"expected {form} labels with pictures below {found.root}, got none ({name}: {reason}): "
                         "give their folder with --pictures")  # fmt: skip
    if not any(picture.boxes for picture in pictures):
        raise UsageError(f"expected labels in {labels}, got {len(pictures):,} pictures without any: label some first")
    notes = [f"{unnamed:,} pictures below {found.root} have no entry in the labels"] if unnamed else []
    return DataSet(labels, form, found.root, tuple(pictures), failed, tuple(notes))
