"""The files of visitors: a folder for each picture, told by its id, and for the downloads of a request."""

import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from filelock import FileLock

from cliploc.web.guard import RefusedError

MAX_AGE = 1800  # files, a visitor's last results and cached features are dropped after so long
MOST_BYTES = 2_000_000_000  # of all files together; of more, the oldest go
MOST_FOLDERS = 10_000
PREFIX, LOCK = "cliploc-serve-", "lock"


class Store:
    """Pictures by id, downloads by folder and name, which nobody can guess."""

    def __init__(
        self,
        folder: Path,
        examples: Mapping[str, Path] | None = None,
        most_bytes: int = MOST_BYTES,
        seconds: float = MAX_AGE,
    ) -> None:
        self._folder, self._most_bytes, self._seconds = folder, most_bytes, seconds
        self._examples = examples or {}
        self._lock = threading.Lock()  # of `sweep`

    def keep(self, file: BinaryIO, name: str) -> str:
        """Stores a picture and returns its id."""
        # Without folders and without what a file system may not take, short enough for all of them.
        name = re.sub(r"[^\w. -]+", "_", re.split(r"[/\\]", name)[-1]).strip(". ")[-60:] or "picture"
        folder = self._folder / secrets.token_hex(20)
        folder.mkdir()
        file.seek(0)
        with (folder / name).open("wb") as stored:
            shutil.copyfileobj(file, stored)
        self.sweep()
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


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for a server's store, removed at the end; or by the next server, if this one is killed."""
    with TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with FileLock(folder / LOCK):
            for lock in folder.parent.glob(f"{PREFIX}*/{LOCK}"):
                if lock.parent != folder and _is_ours(lock.parent, folder):
                    with suppress(OSError):  # a server that lives has the lock
                        with FileLock(lock, timeout=0):
                            pass
                        shutil.rmtree(lock.parent, ignore_errors=True)
            yield folder


def _is_ours(other: Path, folder: Path) -> bool:
    """Whether another folder, and its lock, are of the same user and no links: anybody can make some in /tmp."""
    owner = folder.lstat().st_uid
    return all(path.lstat().st_uid == owner and not path.is_symlink() for path in (other, other / LOCK))
