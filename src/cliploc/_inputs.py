"""The files that a run reads, so that none of its outputs overwrites them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from cliploc.errors import UsageError

Place = tuple[int, int, str]  # device and inode of the folder, and the name in it
MOST_LINKS = 40  # as Linux follows them


class Inputs:
    """Files and where each of their symbolic links leads: names that no output may have.

    Names are compared in the folders they are in, whatever path leads there. A hard link to an input under another name
    is no input: an output replaces the link, and the file stays.

    Example:
        >>> "photos/../photos/a.jpg" in Inputs(["photos/a.jpg"])  # doctest: +SKIP
        True
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        place = lru_cache(_place)
        self._places: set[Place] = set()
        folders: set[str] = set()
        for given in paths:
            path = os.fspath(given)
            for _ in range(MOST_LINKS):
                here = place(*os.path.split(path))
                if here is None:
                    break
                self._places.add(here)
                folders.add(os.path.dirname(path))
                try:
                    path = os.path.join(os.path.dirname(path), os.readlink(path))
                except (OSError, ValueError):  # no link
                    break
        self._folders = {os.path.realpath(folder) for folder in folders}

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        return _place(*os.path.split(os.fspath(path))) in self._places

    def refuse(self, files: Iterable[str | os.PathLike[str]], folders: Iterable[str | os.PathLike[str]] = ()) -> None:
        """Refuses outputs that would overwrite inputs."""
        for file in files:
            if file in self:
                raise UsageError(f"{file} is read by this run, and would be overwritten: choose another --out")
        for folder in folders:
            whole = Path(os.path.realpath(folder))
            if any(whole in (Path(one), *Path(one).parents) for one in self._folders):
                raise UsageError(
                    f"{folder} holds what this run reads, and its content would be replaced: choose another --out"
                )


def _place(folder: str, name: str) -> Place | None:
    """The file's place; None if no file can have this name."""
    try:
        status = os.stat(folder or ".")
    except (OSError, ValueError):
        return None
    # Case does not tell files apart on macOS and Windows.
    return (status.st_dev, status.st_ino, name.casefold()) if name else None
