"""Files that are there as a whole or not at all, whenever the machine stops."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, which takes its place once it is safely on the disk.

    Raises:
        OSError: no room, or a folder that cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    with suppress(OSError):  # not every file system lets a folder be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_folder_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a new folder beside `path`, which takes its place, and that of what was there.

    Raises:
        OSError: no room, or a folder that cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    before = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        if hasattr(os, "sync"):  # thousands of small files: once for all
            os.sync()
        if path.exists():
            path.rename(before)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what writers that were killed have left in a folder."""
    for left in folder.iterdir():
        if re.fullmatch(r"\..+\.\d+\.(tmp|old)", left.name):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
