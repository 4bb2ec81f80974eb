"""Decoded photographs, kept for a while: other names on the same photograph need not decode it again."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from cliploc.images import Picture

MAX_BYTES = 64 * 2**20


@dataclass
class _Kept:
    picture: Picture
    size: int
    used: float


class Pictures:
    """Keeps pictures by their file.

    Args:
        seconds: a picture that was not used for so long is dropped.
        max_bytes: of all that are kept; those not used for longest are dropped. A larger picture is not kept.
        clock: the time in seconds.
    """

    def __init__(self, seconds: float, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._max_bytes, self._clock = seconds, max_bytes, clock
        self._kept: OrderedDict[tuple[str, int, int], _Kept] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def of(self, path: str, read: Callable[[], Picture]) -> Picture:
        """The picture of a file: the one that is kept, or else what `read` returns.

        Raises:
            OSError: there is no such file, or no longer.
        """
        status = os.stat(path)
        key = (path, status.st_mtime_ns, status.st_size)  # another file may have the path later
        self.forget_old()
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                kept.used = self._clock()
                self._kept.move_to_end(key)
        picture = read() if kept is None else kept.picture
        if kept is None:
            with self._lock:
                size = picture.image.width * picture.image.height * len(picture.image.getbands())
                self._kept[key] = _Kept(picture, size, self._clock())
        self.forget_old()
        return picture

    def forget_old(self) -> None:
        """Drops the pictures that were not used for long enough, and those that are too much."""
        with self._lock:
            oldest = self._clock() - self._seconds
            total = sum(one.size for one in self._kept.values())
            while self._kept:
                first = next(iter(self._kept.values()))
                if total <= self._max_bytes and first.used >= oldest:
                    break
                self._kept.popitem(last=False)
                total -= first.size
