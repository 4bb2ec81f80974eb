"""The pictures of a format that comes with them, as links or copies, and the list of which file is which picture."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from cliploc.images import READ_BY_ALL, load
from cliploc.report.exports._values import AnnotatedPicture

PICTURES = "pictures.csv"  # the list's name
HEAD = ("file", "picture")


def file_suffix(picture: AnnotatedPicture) -> str:
    """The extension of a picture's file in an export, in small letters; `.png` for formats that few readers know."""
    suffix = picture.path.suffix.lower()
    return suffix if suffix in READ_BY_ALL else ".png"


def write_picture(picture: AnnotatedPicture, file: Path, copies: bool) -> None:
    """Puts a picture into an export, under a name with the suffix of `file_suffix`.

    Args:
        copies: whether it is copied; otherwise it is linked, or copied where links are not possible. A picture in a
            format that few readers know is always converted.
    """
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
        writer.writerow(HEAD)
        writer.writerows(files)
