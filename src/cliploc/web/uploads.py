"""The files of visitors: a folder for each picture, told by its id, and for the downloads of a request."""

import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from cliploc.web.server import RefusedError

MAX_AGE = 1800  # files, a visitor's last results and cached features are dropped after so long


class Store:
    """Pictures by id, downloads by folder and name, which nobody can guess."""

    def __init__(self, folder: Path, examples: Mapping[str, Path], seconds: float = MAX_AGE) -> None:
        self._folder, self._examples, self._seconds = folder, examples, seconds

    def keep(self, file: BinaryIO, name: str) -> str:
        """Stores a picture and returns its id."""
        # Without folders and without what a file system may not take, short enough for all of them.
        name = re.sub(r"[^\w. -]+", "_", re.split(r"[/\\]", name)[-1]).strip(". ")[-60:] or "picture"
        folder = self._folder / secrets.token_hex(20)
        folder.mkdir()
        file.seek(0)
        with (folder / name).open("wb") as stored:
            shutil.copyfileobj(file, stored)
        return folder.name

    def picture(self, number: str) -> Path:
        """The file of a picture: an upload by its id, an example by its name."""
        if number in self._examples:
            return self._examples[number]
        if re.fullmatch("[0-9a-f]{40}", number):
            with suppress(OSError, StopIteration):
                return next((self._folder / number).iterdir())
        raise RefusedError(404, "There is no picture with this id, or no longer: upload it.")

    def new_folder(self) -> Path:
        """A new folder for downloads."""
        folder = self._folder / secrets.token_hex(16)
        folder.mkdir()
        return folder

    def download(self, folder: str, name: str) -> Path:
        """A file of `new_folder`."""
        if re.fullmatch("[0-9a-f]{32}", folder):
            with suppress(OSError):
                for path in (self._folder / folder).iterdir():
                    if path.name == name and path.is_file():
                        return path
        raise RefusedError(404, "There is no such file, or no longer: create the files again.")

    def sweep(self) -> None:
        """Removes what is too old."""
        for entry in os.scandir(self._folder):
            with suppress(OSError):  # another thread sweeps, too
                if time.time() - entry.stat().st_mtime > self._seconds:
                    shutil.rmtree(entry.path, ignore_errors=True)
