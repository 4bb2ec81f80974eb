"""The last results of each visitor of the page, for the sliders, the downloads, and a search for the same again."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from cliploc.web.service import KEPT_SECONDS, Look

MOST = 64  # visitors
MAX_BYTES = 128 * 2**20  # a search for 120 heatmaps alone has 49 MB of them


class Looks:
    """Keeps each visitor's last look for a while.

    Args:
        most: of so many visitors; of more, the look that was kept first is dropped.
        seconds: for so long, as the photograph is kept.
        max_bytes: of all heatmaps and photographs, the same holds; the newest look stays in any case.
        clock: the time in seconds.

    Example:
        >>> Looks().last("nobody") is None
        True
    """

    def __init__(
        self,
        most: int = MOST,
        seconds: float = KEPT_SECONDS,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._seconds, self._max_bytes, self._clock = most, seconds, max_bytes, clock
        self._kept: OrderedDict[str, tuple[float, Look]] = OrderedDict()  # visitor → since when, look; oldest first
        self._lock = threading.Lock()

    def keep(self, visitor: str, look: Look) -> None:
        """Keeps a visitor's look in the place of the last one."""
        with self._lock:
            self._kept[visitor] = (self._clock(), look)
            self._kept.move_to_end(visitor)
            total = sum(_bytes(one) for _, one in self._kept.values())
            while len(self._kept) > self._most or (total > self._max_bytes and len(self._kept) > 1):
                _, (_, dropped) = self._kept.popitem(last=False)
                total -= _bytes(dropped)

    def last(self, visitor: str) -> Look | None:
        """A visitor's last look; None if there is none, or no longer."""
        self.forget_old()
        with self._lock:
            _, look = self._kept.get(visitor, (0.0, None))
            return look

    def forget_old(self) -> None:
        """Drops the looks that were kept long enough."""
        with self._lock:
            while self._kept and next(iter(self._kept.values()))[0] < self._clock() - self._seconds:
                self._kept.popitem(last=False)


def _bytes(look: Look) -> int:
    return sum(one.maps.nbytes + 3 * one.image.width * one.image.height for one in look.results.values())
