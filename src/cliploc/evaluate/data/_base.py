"""What readers of datasets are made of: what they find, the registries, and files with one entry per line."""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeAlias, TypeVar

from cliploc.errors import InputError, UsageError
from cliploc.formats import Box, Size, coco
from cliploc.images.reading import SUFFIXES, open_picture, orientation
from cliploc.registry import Registry
from cliploc.runs.samples import LabelledPicture
from cliploc.support.documents import lines_of, read_json, read_text
from cliploc.values import ClassName, Problem, Role

F = TypeVar("F")
HELP = "`cliploc datasets NAME` shows the layout"
ENDINGS = [end for suffix in (".jpg", *sorted(SUFFIXES - {".jpg"})) for end in (suffix, suffix.upper())]
BY_DESIGN = frozenset({"crowd", "difficult"})  # kinds of problems that the dataset's authors intended to be left out


class Problems(list[Problem]):
    """Everything that was left out or corrected, in the order of reading."""

    def add(self, kind: str, source: str, reason: str) -> None:
        """Adds a problem."""
        self.append(Problem(kind, source, reason))


@dataclass(frozen=True)
class Candidate:
    """The annotation of one class in one picture, not checked yet; id, path, label, masks and ignore as in `Sample`."""

    id: str
    path: Path
    label: int
    boxes: Sequence[Box] = ()  # exclusive right and bottom edges, in pixels of the picture as it was annotated
    size_wh: Size | None = None  # the annotated size; None if the annotations have none, so that the file's size counts
    masks: tuple[Path, ...] = ()
    ignore: Path | None = None
    resized: bool = False  # whether the file may have another size than the annotated one
    upright: bool = False  # whether the annotations are for the picture as it is displayed, not as it is stored (EXIF)
    hint: str = ""  # what to do if the picture is missing


@dataclass(frozen=True)
class Split:
    """A part of a dataset."""

    name: str  # such as "val"
    role: Role  # "tune" if thresholds may be chosen on it, else "report"
    about: str  # a short description


@dataclass(frozen=True)
class Found:
    """What a reader found in the annotations, before any picture is opened."""

    classes: tuple[ClassName, ...]  # the names of the class of each label
    candidates: Sequence[Candidate]  # for samples in a fixed order, those of the same picture next to each other
    # pictures and labels that are there as what evaluations ignore, such as crowds, beside samples or alone
    unclear: frozenset[tuple[Path, int]] = frozenset()
    # picture → labels known not to be there; None if all labels without a candidate are absent
    absent: Mapping[Path, frozenset[int]] | None = None


Read: TypeAlias = Callable[[Path, str, Problems], F]  # root, split and the list of problems → what it found


@dataclass(frozen=True)
class DatasetReader(Generic[F]):
    """A reader, and what it says of its dataset."""

    name: str  # as typed on the command line
    title: str  # the dataset's name as papers write it
    about: str  # what the dataset contains
    source: str  # where to get it; nothing is downloaded
    splits: tuple[Split, ...]  # the first is the default
    layout: str  # the files expected below the root, one per line
    read: Read[F]

    def split(self, name: str | None) -> Split:
        """The split of that name; the first for None."""
        for split in self.splits:
            if name in (None, split.name):
                return split
        names = ", ".join(split.name for split in self.splits)
        raise UsageError(f"{self.name} has no split {name!r}: expected one of {names}")


class Readers(Registry[DatasetReader[F]]):
    """A registry of readers."""

    def reader(self, name: str, *, layout: str, **facts: Any) -> Callable[[Read[F]], Read[F]]:
        """Registers a function as the reader of a dataset; the arguments are the attributes of `DatasetReader`."""

        def register(read: Read[F]) -> Read[F]:
            self.register(name, DatasetReader(name=name, layout=layout.strip("\n"), read=read, **facts))
            return read

        return register


Reader: TypeAlias = DatasetReader[Found]
readers: Readers[Found] = Readers(
    "dataset", "cliploc.evaluate.data", "cliploc.datasets", home=lambda reader: reader.read.__module__
)
reader = readers.reader
Labelled: TypeAlias = tuple[tuple[ClassName, ...], Sequence[LabelledPicture]]
LabelledReader: TypeAlias = DatasetReader[Labelled]
labelled_readers: Readers[Labelled] = Readers("segmentation dataset", "cliploc.evaluate.data.segmentation")
labelled_reader = labelled_readers.reader


# -------------------------------------------------------------------------------------------------------------- files
@contextmanager
def reading(path: Path, missing: str = "") -> Iterator[None]:
    """Reads a file of a dataset in a `with` block; `missing`: the line for a file that is not there."""
    try:
        yield
    except FileNotFoundError:
        raise UsageError(missing or f"expected {path}, found no such file: {HELP}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): check the file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not text in UTF-8 with values in columns: write it again") from error


def coco_document(path: Path, again: str = "download", missing: str = "") -> coco.Document:
    """A file in COCO's format; `again` is what to do once more if it is damaged."""
    with reading(path, missing):
        try:
            return coco.read_document(read_json(path))
        except ValueError as error:
            raise UsageError(f"{path} is not in COCO's format ({error}): {again} it again") from None


def csv_rows(path: Path, cells: int | None = None) -> list[list[str]]:
    """The rows of a comma-separated file without empty lines; each must have `cells` cells, unless None."""
    with reading(path):
        rows = enumerate(csv.reader(read_text(path).splitlines(keepends=True)), start=1)
        return _of_length(path, [(i, [cell.strip() for cell in row]) for i, row in rows if row], cells)


def words(path: Path, cells: int) -> list[list[str]]:
    """The rows of a text file with so many cells separated by spaces; the last cell may contain spaces."""
    with reading(path):
        lines = enumerate(lines_of(path), start=1)
        return _of_length(
            path, [(i, line.strip().split(maxsplit=cells - 1)) for i, line in lines if line.strip()], cells
        )


def _of_length(path: Path, rows: list[tuple[int, list[str]]], cells: int | None) -> list[list[str]]:
    for i, row in rows:
        if cells is not None and len(row) != cells:
            raise UsageError(f"{path}, line {i}: expected {cells} values, got {len(row)}: correct the line")
    return [row for _, row in rows]


def numbers(
    path: Path, count: int, kind: type[float] = int, separator: str = ","
) -> list[tuple[str, tuple[float, ...]]]:
    """The rows of a file of an id and `count` numbers each; a line of names may come first."""
    found = []
    rows = csv_rows(path, 1 + count) if separator == "," else words(path, 1 + count)
    for i, (key, *cells) in enumerate(rows, start=1):
        try:
            found.append((key, tuple(map(kind, cells))))
        except ValueError:
            if (key, i) == ("image_id", 1):
                continue
            what, got = "integers" if kind is int else "numbers", ",".join(cells)[:60]
            raise UsageError(f"{path}, row {i}: expected {what}, got {got}: correct the line") from None
    return found


def first_folder(root: Path, places: Iterable[str]) -> Path | None:
    """The first of these paths below the root that is a folder, or None."""
    return next((root / place for place in places if (root / place).is_dir()), None)


def needed_folder(root: Path, places: Sequence[str], what: str) -> Path:
    """The first of these paths below the root that is a folder."""
    folder = first_folder(root, places)
    if folder is None:
        raise UsageError(f"expected a folder of {what} at {root}/{', or '.join(places)}; found none: {HELP}")
    return folder


def picture_of(folders: Sequence[Path], stem: str) -> Path:
    """The picture with this name in the first of these folders that has it; as a JPEG in the first one if none has."""
    places = (folder / f"{stem}{end}" for folder in folders for end in ENDINGS)
    return next((path for path in places if path.is_file()), folders[0] / f"{stem}.jpg")


def safe_id(sample_id: str) -> bool:
    """Whether a file named by this id stays inside its folder."""
    parts = PurePosixPath(sample_id.replace("\\", "/")).parts
    return bool(sample_id) and not Path(sample_id).is_absolute() and ".." not in parts


def picture_ids(names: Iterable[str]) -> dict[str, str]:
    """The id of each picture: its path without the extension, or the full path where others have the same."""
    stems = {name: Path(name).with_suffix("").as_posix() for name in names}
    times = Counter(stems.values())
    return {name: stem if times[stem] == 1 else name for name, stem in stems.items()}


def picture_header(path: Path) -> tuple[Size, int]:
    """Size as stored, and EXIF orientation, 1–8, of a picture file; the picture is not decoded."""
    try:
        with open_picture(path) as opened:
            return opened.image.size, orientation(opened.image)
    except InputError as error:
        if not os.path.exists(path):
            raise InputError(f"expected a picture at {path}, found none: left out") from None
        raise InputError(f"{error}; left out") from None


def turned_wh(size_wh: Size, orientation: int) -> Size:
    """The size of a picture after its EXIF orientation is applied."""
    return (size_wh[1], size_wh[0]) if orientation >= 5 else size_wh


def by(size_wh: Iterable[float]) -> str:
    """A size in words: 640×480."""
    return "×".join(map(str, size_wh))


# -------------------------------------------------- phrases as classes, where each thing has a sentence of its own
SIGNS = str.maketrans(dict.fromkeys("|~@", " "))  # which mean something in a name; see `cliploc.find.prompts.parse`
PhraseRow: TypeAlias = tuple[str, str, Path, list[Box], Size]  # sample's id, phrase, picture, boxes, picture's size


def plain_phrase(text: str) -> str:
    """A phrase on one line, without the signs that mean something in a name."""
    return " ".join(text.translate(SIGNS).split())


def found_phrases(rows: Sequence[PhraseRow]) -> Found:
    """The candidates of these rows, with a class for each different phrase, sorted."""
    phrases = sorted({phrase for _, phrase, *_ in rows})
    labels = {phrase: label for label, phrase in enumerate(phrases)}
    candidates = [Candidate(name, path, labels[phrase], boxes, size) for name, phrase, path, boxes, size in rows]
    return Found(tuple(ClassName(phrase, (phrase,)) for phrase in phrases), candidates)
