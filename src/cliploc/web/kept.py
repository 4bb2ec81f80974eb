"""What the server keeps in memory for a while: the visitors' last results, and decoded photographs."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass
class _One(Generic[V]):
    value: V
    size: int
    used: float


class Kept(Generic[V]):
    """Keeps values by their key; those not used for longest are dropped first.

    Args:
        seconds: a value that was not used for so long is dropped.
        most: the size of all values together; a larger value is not kept.

    Example:
        >>> kept = Kept[str](seconds=60, most=2)
        >>> for key in "abc":
        ...     kept.keep(key, key.upper())
        >>> kept.get("a"), kept.get("c")
        (None, 'C')
    """

    def __init__(self, seconds: float, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._most, self._clock = seconds, most, clock
        self._kept: OrderedDict[Hashable, _One[V]] = OrderedDict()  # not used for longest first
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> V | None:
        """The value of a key; None if there is none, or no longer."""
        self.forget_old()
        with self._lock:
            if (one := self._kept.get(key)) is None:
                return None
            one.used = self._clock()
            self._kept.move_to_end(key)
            return one.value

    def keep(self, key: Hashable, value: V, size: int = 1) -> None:
        """Keeps a value in the place of the key's last one."""
        with self._lock:
            self._kept.pop(key, None)
            if size <= self._most:
                self._kept[key] = _One(value, size, self._clock())
        self.forget_old()

    def forget_old(self) -> None:
        """Drops the values that were not used for long enough, and those that are too much."""
        with self._lock:
            oldest = self._clock() - self._seconds
            total = sum(one.size for one in self._kept.values())
            while self._kept:
                first = next(iter(self._kept.values()))
                if total <= self._most and first.used >= oldest:
                    break
                self._kept.popitem(last=False)
                total -= first.size
