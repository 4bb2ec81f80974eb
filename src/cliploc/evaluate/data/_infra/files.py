"""Reads text files with one entry per line; an error names the file and the row."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cliploc.errors import UsageError
from cliploc.formats import coco
from cliploc.images.reading import SUFFIXES
from cliploc.support.documents import lines_of, read_json, read_text

HELP = "`cliploc datasets NAME` shows the layout"
ENDINGS = [end for suffix in (".jpg", *sorted(SUFFIXES - {".jpg"})) for end in (suffix, suffix.upper())]


@contextmanager
def reading(path: Path, missing: str = "") -> Iterator[None]:
    """Reads a file of a dataset in a `with` block; `missing`: the line for a file that is not there."""
    try:
        yield
    except FileNotFoundError:
        raise UsageError(missing or f"expected {path}, found no such file: {HELP}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): check the file") from error


def coco_document(path: Path, again: str = "download", missing: str = "") -> coco.Document:
    """A file in COCO's format; `again` is what to do once more if it is damaged."""
    with reading(path, missing):
        try:
            return coco.read_document(read_json(path))
        except ValueError as error:
            raise UsageError(f"{path} is not in COCO's format ({error}): {again} it again") from None


def csv_rows(path: Path, cells: int | None = None) -> list[list[str]]:
    """The rows of a comma-separated file without empty lines; each must have `cells` cells, unless None."""
    try:
        with reading(path):
            lines = read_text(path).splitlines(keepends=True)
        rows = [(i, [cell.strip() for cell in row]) for i, row in enumerate(csv.reader(lines), start=1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not comma-separated text in UTF-8: write it again") from error
    for i, row in rows:
        if cells is not None and len(row) != cells:
            raise UsageError(f"{path}, line {i}: expected {cells} values with commas, got {len(row)}: correct the line")
    return [row for _, row in rows]


def csv_numbers(path: Path, count: int, kind: type[float] = int) -> list[tuple[str, tuple[float, ...]]]:
    """The rows of a comma-separated file of an id and `count` numbers each; a line of names may come first."""
    rows = []
    for i, (key, *cells) in enumerate(csv_rows(path, 1 + count), start=1):
        try:
            rows.append((key, tuple(map(kind, cells))))
        except ValueError:
            if (key, i) == ("image_id", 1):
                continue
            what = "integers" if kind is int else "numbers"
            got = ",".join(cells)[:60]
            raise UsageError(f"{path}, row {i}: expected {what}, got {got}: correct the line") from None
    return rows


def words(path: Path, count: int, again: str = "write") -> list[tuple[str, ...]]:
    """The rows of a text file with `count` cells separated by spaces; the last cell may contain spaces."""
    try:
        with reading(path):
            lines = lines_of(path)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8: {again} it again") from error
    rows = []
    for i, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        cells = tuple(line.strip().split(maxsplit=count - 1))
        if len(cells) != count:
            raise UsageError(f"{path}, line {i}: expected {count} values, got {len(cells)}: correct the line")
        rows.append(cells)
    return rows


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
