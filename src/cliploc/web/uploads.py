"""The folder of uploads and downloads: old files are removed, and its size is limited."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

MAX_FILES = 10_000


class Uploads:
    """Removes files from a folder when they are old or too many.

    Args:
        folder: the folder. Files that are in it already are never removed, such as the page's examples.
        max_bytes: the limit for all files together; the oldest are removed first.
        max_seconds: the limit for a file's age.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     uploads = Uploads(Path(name), 150, 60)
        ...     for letter in "ab":
        ...         _ = Path(name, letter).write_bytes(bytes(100))
        ...     uploads.sweep()
        ...     len(os.listdir(name))
        1
    """

    def __init__(self, folder: Path, max_bytes: int, max_seconds: float) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._kept: frozenset[Path] = frozenset()
        self._kept = frozenset(path for _, _, path in self._files())

    def sweep(self, room: int = 0) -> None:
        """Removes files that are too old, then the oldest until `room` more bytes fit; also removes empty folders."""
        with self._lock:
            oldest_first = sorted(self._files())
            total, number = sum(size for _, size, _ in oldest_first), len(oldest_first)
            now = time.time()
            for changed, size, path in oldest_first:
                if now - changed <= self._max_seconds and total + room <= self._max_bytes and number <= MAX_FILES:
                    break
                with suppress(OSError):  # removed by somebody else
                    path.unlink()
                total, number = total - size, number - 1
            self._remove_empty_folders(now)

    def watch(self, every: float) -> None:
        """Starts a thread that sweeps at this interval in seconds, until `end`."""

        def carry_out() -> None:
            while not self._end.wait(every):
                self.sweep()

        threading.Thread(target=carry_out, name="cliploc-uploads", daemon=True).start()

    def end(self) -> None:
        """Stops watching."""
        self._end.set()

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        for place, _, names in os.walk(self._folder):
            for name in names:
                path = Path(place, name)
                if path in self._kept:
                    continue
                with suppress(OSError):
                    status = path.lstat()
                    found.append((status.st_ctime, status.st_size, path))
        return found

    def _remove_empty_folders(self, now: float) -> None:
        for place, _, _ in os.walk(self._folder, topdown=False):
            with suppress(OSError):  # a folder that is not empty stays
                if (
                    Path(place) != self._folder and now - os.stat(place).st_mtime > 60
                ):  # a new folder may get its file soon
                    os.rmdir(place)
