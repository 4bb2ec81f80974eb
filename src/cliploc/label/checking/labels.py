"""The data set that is checked: every label with its picture, whatever the format. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from cliploc.errors import InputError, UsageError
from cliploc.formats import LabelledBox, LabelSet, PictureLabels, Size, yolo
from cliploc.formats.reading import FORMATS, UNREADABLE, PictureFinder, in_one_line, read_labels
from cliploc.images.reading import size_of
from cliploc.runs.picture_files import FoundPictures, PictureFile, find_pictures

FOLDERS = "folders of classes"
OF_LABELS = ("annotations", "labels")  # folders beside which pictures lie


@dataclass(frozen=True)
class LabelledFile:
    """A picture with its labels."""

    file: PictureFile
    size_wh: Size  # upright
    boxes: tuple[LabelledBox, ...]
    said_wh: Size | None  # its size, if the set says it

    @property
    def id(self) -> str:
        """Its path below the folder of pictures."""
        return self.file.id


@dataclass(frozen=True)
class DataSet:
    """What is checked."""

    labels: Path
    format: str  # as its users call it: "COCO"
    root: Path  # of the pictures
    pictures: tuple[LabelledFile, ...]
    failed: dict[str, str]  # picture, as the set names it → why it is not checked
    unnamed: int  # pictures there that the set does not name

    @property
    def of_boxes(self) -> bool:
        """Whether its labels are boxes; else each is of a whole picture."""
        return self.format != FOLDERS


def read_set(labels: Path, pictures: Path | None, out: Path | None) -> DataSet:
    """Reads labels of any format, and finds their pictures: below a folder, or beside the labels."""
    if pictures is None and _is_class_folders(labels):
        found = find_pictures(labels, out)
        read = _class_folders(found)
    else:
        read = read_labels(labels, f"{FORMATS}, or {FOLDERS}")
        folder = labels if labels.is_dir() else labels.absolute().parent
        beside = folder.absolute().parent if folder.name.lower() in OF_LABELS else folder
        found = find_pictures(pictures or beside, out)
    return _checked(labels, read, found)


def _is_class_folders(labels: Path) -> bool:
    """Whether it is a folder of folders, and not a set in a format that is one."""
    if not labels.is_dir() or any((labels / name).exists() for name in yolo.CLASS_LISTS):
        return False
    return next(labels.rglob("*.xml"), None) is None and any(path.is_dir() for path in labels.iterdir())


def _class_folders(found: FoundPictures) -> LabelSet:
    """Each picture with the name of its folder as the label of all of it."""

    def whole(picture: str, size_wh: Size, _: bool) -> Iterator[LabelledBox]:
        yield LabelledBox(picture, PurePosixPath(picture).parent.name, (0.0, 0.0, *size_wh))

    ids = [file.id for file in found.pictures if "/" in file.id]
    return LabelSet(FOLDERS, tuple(PictureLabels((name,), partial(whole, name)) for name in ids))


def _checked(labels: Path, read: LabelSet, found: FoundPictures) -> DataSet:
    """The pictures of a set that are there, and why others are not checked."""
    files = {file.id: file for file in found.pictures}
    find = PictureFinder(files, read.listed, {}, f"no picture below {found.root} has this name")
    pictures, failed = dict[str, LabelledFile](), dict[str, str]()
    for entry in read.pictures:
        try:
            file = files[find(entry.names, entry.more)]
            if file.id in pictures:
                raise ValueError(f"another picture of the set is {file.id}, too")
            size = size_of(file.path)
            pictures[file.id] = LabelledFile(file, size, tuple(entry.boxes(size, False)), entry.size_wh)
        except InputError as error:
            failed[entry.names[0]] = str(error).partition(": ")[2]
        except UNREADABLE as error:
            failed[entry.names[0]] = in_one_line(error)
    if not any(picture.boxes for picture in pictures.values()):
        name, reason = next(iter(failed.items()), (str(labels), "it has no label"))
        raise UsageError(f"expected labels of pictures below {found.root}, got none ({name}: {reason}): "
                         "check both paths, or give --pictures")  # fmt: skip
    unnamed = len(files.keys() - pictures.keys())
    return DataSet(labels, read.format, found.root, tuple(pictures.values()), failed, unnamed)
