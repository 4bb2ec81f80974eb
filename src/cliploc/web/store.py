"""The files of visitors: pictures by their id, downloads by folder and name, and room for what is uploaded."""

import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO

from cliploc.web.clients import RefusedError


class Store:
    """Pictures by id, downloads by folder and name, which nobody can guess or compute from a picture."""

    def __init__(self, folder: Path, examples: Mapping[str, Path] | None = None) -> None:
        self._folder = folder
        self._examples = examples or {}
        self._key = secrets.token_bytes(32)

    def keep(self, file: BinaryIO, name: str) -> str:
        """Stores a picture and returns its id, which is the same for the same picture and name."""
        # Without folders and without what a file system may not take, short enough for all of them.
        name = re.sub(r"[^\w. -]+", "_", re.split(r"[/\\]", name)[-1]).strip(". ")[-60:] or "picture"
        file.seek(0)
        digest = hashlib.blake2b(name.encode(), key=self._key, digest_size=20)
        with NamedTemporaryFile(dir=self._folder, delete=False) as stored:
            while part := file.read(2**20):
                digest.update(part)
                stored.write(part)
        picture_id = digest.hexdigest()
        (self._folder / picture_id).mkdir(exist_ok=True)
        Path(stored.name).replace(self._folder / picture_id / name)
        return picture_id

    def picture(self, number: str) -> Path:
        """The file of a picture."""
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


MAX_FILES = 10_000
REST = 20  # before an upload, the folder is read again only after this many times as long as reading it took


class Uploads:
    """Removes files from a folder when they are old or too many; those that are in it already always stay."""

    def __init__(
        self, folder: Path, max_bytes: int, max_seconds: float, on_sweep: Callable[[], None] = lambda: None
    ) -> None:
        self._on_sweep = on_sweep  # drops what else is kept for so long
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._kept: frozenset[str] = frozenset()
        self._kept = frozenset(path for _, _, path in self._files())
        self._bytes = self._number = 0  # at the last reading of the folder, plus the uploads since then
        self._read_again = 0.0

    def make_room(self, length: int) -> None:
        """Removes files if so many more bytes might be too much; reads the folder only then, or after a while."""
        with self._lock:
            self._bytes, self._number = self._bytes + length, self._number + 1
            fits = self._bytes <= self._max_bytes and self._number <= MAX_FILES
            if fits and time.monotonic() < self._read_again:
                return
        self.sweep(length)

    def sweep(self, room: int = 0) -> None:
        """Removes files that are too old, then the oldest until `room` more bytes fit; also removes empty folders."""
        with self._lock:
            began = time.monotonic()
            oldest_first = sorted(self._files())
            total, number = sum(size for _, size, _ in oldest_first), len(oldest_first)
            now = time.time()
            for changed, size, path in oldest_first:
                if now - changed <= self._max_seconds and total + room <= self._max_bytes and number <= MAX_FILES:
                    break
                with suppress(OSError):  # removed by somebody else
                    os.unlink(path)
                total, number = total - size, number - 1
            self._remove_empty_folders(now)
            self._bytes, self._number = total + room, number + 1
            ended = time.monotonic()
            self._read_again = ended + REST * (ended - began)

    def watch(self, every: float) -> None:
        """Starts a thread that sweeps at this interval in seconds, until `end`."""

        def carry_out() -> None:
            while not self._end.wait(every):
                self.sweep()
                self._on_sweep()

        threading.Thread(target=carry_out, name="cliploc-uploads", daemon=True).start()

    def end(self) -> None:
        """Stops watching."""
        self._end.set()

    def _files(self) -> list[tuple[float, int, str]]:
        files = []
        for place, _, names in os.walk(self._folder):
            for name in names:
                path = os.path.join(place, name)
                if path in self._kept:
                    continue
                with suppress(OSError):
                    status = os.lstat(path)
                    files.append((status.st_ctime, status.st_size, path))
        return files

    def _remove_empty_folders(self, now: float) -> None:
        for place, _, names in os.walk(self._folder, topdown=False):
            if names or place == str(self._folder):
                continue
            with suppress(OSError):  # a folder that is not empty stays
                if now - os.stat(place).st_mtime > 60:  # a new folder may get its file soon
                    os.rmdir(place)
