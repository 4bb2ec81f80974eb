"""The folder of uploads and downloads: old files are removed, and its size is limited."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

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
        found = []
        for place, _, names in os.walk(self._folder):
            for name in names:
                path = os.path.join(place, name)
                if path in self._kept:
                    continue
                with suppress(OSError):
                    status = os.lstat(path)
                    found.append((status.st_ctime, status.st_size, path))
        return found

    def _remove_empty_folders(self, now: float) -> None:
        for place, _, names in os.walk(self._folder, topdown=False):
            if names or place == str(self._folder):
                continue
            with suppress(OSError):  # a folder that is not empty stays
                if now - os.stat(place).st_mtime > 60:  # a new folder may get its file soon
                    os.rmdir(place)
