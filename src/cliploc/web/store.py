"""The files of visitors: a folder for each picture, told by its id, and for the downloads of a request."""

import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from cliploc.web.clients import RefusedError

KEPT_SECONDS = 1800  # files, a visitor's last results and cached features are dropped after so long
MOST_BYTES = 2_000_000_000  # of all files together; of more, the oldest go
MOST_FOLDERS = 10_000


class Store:
    """Pictures by id, downloads by folder and name, which nobody can guess or compute from a picture."""

    def __init__(
        self,
        folder: Path,
        examples: Mapping[str, Path] | None = None,
        most_bytes: int = MOST_BYTES,
        seconds: float = KEPT_SECONDS,
    ) -> None:
        self._folder, self._most_bytes, self._seconds = folder, most_bytes, seconds
        self._examples = examples or {}
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()  # of `sweep`

    def keep(self, file: BinaryIO, name: str) -> str:
        """Stores a picture and returns its id, which is the same for the same picture and name."""
        # Without folders and without what a file system may not take, short enough for all of them.
        name = re.sub(r"[^\w. -]+", "_", re.split(r"[/\\]", name)[-1]).strip(". ")[-60:] or "picture"
        digest = hashlib.blake2b(name.encode(), key=self._key, digest_size=20)
        new = self.new_folder()
        file.seek(0)
        with (new / name).open("wb") as stored:
            while part := file.read(2**20):
                digest.update(part)
                stored.write(part)
        place = self._folder / digest.hexdigest()
        try:
            new.rename(place)
        except OSError:  # the picture is there: it is as new as this one
            shutil.rmtree(new)
            with suppress(OSError):
                os.utime(place)
        self.sweep()
        return place.name

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
        """Removes folders that are too old, then the oldest where all together are too many or too large."""
        with self._lock:
            folders = sorted(
                ((entry.stat().st_mtime, _bytes_in(entry.path), entry.path) for entry in os.scandir(self._folder)
                 if entry.is_dir()),
            )  # fmt: skip
            total, number = sum(size for _, size, _ in folders), len(folders)
            for changed, size, path in folders:
                if time.time() - changed <= self._seconds and total <= self._most_bytes and number <= MOST_FOLDERS:
                    break
                shutil.rmtree(path, ignore_errors=True)
                total, number = total - size, number - 1


def _bytes_in(folder: str) -> int:
    size = 0
    with suppress(OSError):
        for entry in os.scandir(folder):
            size += entry.stat().st_size
    return size
