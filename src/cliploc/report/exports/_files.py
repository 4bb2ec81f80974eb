"""The files of a format that comes with the pictures: their names, the pictures, and the list of which is which."""

from __future__ import annotations

import csv
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from cliploc.errors import UsageError
from cliploc.images import READ_BY_ALL, load
from cliploc.report.exports._values import AnnotatedPicture

PICTURES = "pictures.csv"  # the list's name


class FileNames:
    """Unique names in one folder by stem, as most readers know them: `cats/a.jpg` → `cats__a`, then `cats__a-2`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._files: set[str] = set()
        self._last: dict[tuple[str, ...], int] = {}  # stem and endings → the number that they had last

    def of(self, picture: AnnotatedPicture, *endings: str) -> list[Path]:
        """The picture's files, one for each ending: `labels/*.txt` gives `labels/cats__a.txt`. The folders are made."""
        stem = flat_stem(picture.name)
        number = self._last.get((stem, *endings), 0)
        while True:
            number += 1
            numbered = stem if number == 1 else f"{stem}-{number}"
            files = [_placed(numbered, ending) for ending in endings]
            if not {_folded(one) for one in files} & self._files:
                break
        self._last[stem, *endings] = number
        self._files |= {_folded(one) for one in files}
        return [self._inside(one) for one in files]

    def _inside(self, file: PurePosixPath) -> Path:
        """The file's path, refused if it is not below the folder for any reason."""
        path = self._folder / file
        if self._folder not in path.resolve().parents:
            raise UsageError(f"expected a file inside the export's folder, got {path}: rename its picture")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def flat_stem(name: str) -> str:
    """The stem of `FileNames` for a single picture; what lists, YAML or file systems misread becomes `_`."""
    *folders, last = _safe_parts(name)
    stem = "__".join([*folders, PurePosixPath(last).stem])
    return _shortened(re.sub(r"""[\s"'#<>:|?*]""", "_", stem))


def _safe_parts(name: str) -> list[str]:
    """Splits a picture's name at its slashes into folders and a file name that are safe on every system."""
    parts = [_safe(part) for part in name.split("/") if part not in ("", ".", "..")]
    return parts or ["_"]


def _safe(part: str) -> str:
    """Replaces backslashes, control characters, lone surrogates, a drive's colon and a name of dots only by `_`."""
    letters = "".join("_" if one == "\\" or unicodedata.category(one) in ("Cc", "Cs") else one for one in part)
    letters = re.sub(r"^([A-Za-z]):", r"\1_", letters)
    return letters if letters.strip(" .") else "_" * len(letters)


def _shortened(stem: str) -> str:
    """Keeps the end of a long name, as most file systems allow 255 bytes, and an ending and a number are added."""
    while len(stem.encode()) > 200:
        stem = stem[1:]
    return f"_{stem}" if stem.startswith(".") or not stem else stem


def _placed(stem: str, ending: str) -> PurePosixPath:
    """The path of a picture's file: `labels/*.txt` and `a` give `labels/a.txt`."""
    folder, _, suffix = ending.partition("*")
    return PurePosixPath(folder) / _safe(f"{stem}{suffix}")


def _folded(path: PurePosixPath) -> str:
    """A key that is equal for names that some file systems treat as equal (case, composed letters)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())


def file_suffix(picture: AnnotatedPicture) -> str:
    """The extension of a picture's file in an export, in small letters; `.png` for formats that few readers know."""
    suffix = picture.path.suffix.lower()
    return suffix if suffix in READ_BY_ALL else ".png"


def write_picture(picture: AnnotatedPicture, file: Path, copies: bool) -> None:
    """Links a picture into an export, or copies it; one in a format that few readers know is always converted."""
    if picture.path.suffix.lower() not in READ_BY_ALL:
        load(picture.path, str(picture.path)).image.save(file)
        return
    if not copies:
        try:
            os.symlink(picture.path.absolute(), file)
        except (OSError, NotImplementedError):
            pass
        else:
            return
    shutil.copyfile(picture.path, file)


def write_list(folder: Path, files: Iterable[tuple[str, str]]) -> None:
    """Writes which file in an export is which picture: pairs of the file's name and the picture's."""
    with (folder / PICTURES).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("file", "picture"), *files])
