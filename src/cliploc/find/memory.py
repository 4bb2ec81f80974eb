"""What towers computed, kept in memory: traces of pictures too, so that new names cost no forward pass."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from cliploc.towers.tower import Backbone, Needs, Trace

V = TypeVar("V")
B = TypeVar("B", bound="OfModel")


class OfModel(Protocol):
    """Anything that holds a model."""

    backbone: Backbone


def once(cache: dict[Any, V], key: Hashable, make: Callable[[], V]) -> V:
    """The value of a key, made if it is not there."""
    if key not in cache:
        cache[key] = make()
    return cache[key]


@dataclass
class Remembered:
    """A batch of pictures as one model saw it."""

    # By what they hold. Each is made as if it were alone: no result depends on what was asked before.
    traces: dict[Needs, Trace] = field(default_factory=dict)
    # What methods made of it that depends on no text; see `Context.cache`.
    shared: dict[Any, Any] = field(default_factory=dict)


@dataclass
class _Stored(Generic[V]):
    value: V
    size: int
    used: float


class LruCache(Generic[V]):
    """Values by key for several threads, at most `most` in size; those that were not used for longest go first."""

    def __init__(self, most: int, seconds: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        self._entries: OrderedDict[Hashable, _Stored[V]] = OrderedDict()  # what was not used for longest comes first
        self._size = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Of all values together."""
        with self._lock:
            return self._size

    def get(self, key: Hashable) -> V | None:
        """The value of a key; None if there is none, or no longer."""
        self.forget_old()
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            entry.used = self._clock()
            self._entries.move_to_end(key)
            return entry.value

    def keep(self, key: Hashable, value: V, size: int = 1) -> None:
        """Keeps a value in the place of the key's last one."""
        with self._lock:
            if key in self._entries:
                self._drop(key)
            if size <= self._most:
                self._entries[key] = _Stored(value, size, self._clock())
                self._size += size
        self.forget_old()

    def forget_old(self) -> None:
        """Drops what was not used for long enough, and what is too much."""
        with self._lock:
            oldest = -math.inf if self._seconds is None else self._clock() - self._seconds
            while self._entries:
                key = next(iter(self._entries))
                if self._size <= self._most and self._entries[key].used >= oldest:
                    return
                self._drop(key)

    def forget(self, useless: Callable[[V], bool]) -> None:
        """Drops values of no use."""
        with self._lock:
            for key in [key for key, entry in self._entries.items() if useless(entry.value)]:
                self._drop(key)

    def _drop(self, key: Hashable) -> None:
        self._size -= self._entries.pop(key).size


class Memory:
    """A cache of what the towers computed of pictures and names, for any localizers, in several threads too.

    Args:
        max_bytes: of all that is kept; what was not used for longest goes first.
        max_seconds: what was not used for so long goes, at the latest when something else is used; None: it stays.
        clock: tells the seconds.

    Example:
        >>> import numpy as np
        >>> from cliploc import Localizer
        >>> localizer, picture = Localizer(memory=Memory()), np.zeros((64, 48, 3), np.uint8)
        >>> cat, dog = localizer(picture, ["cat"]), localizer(picture, ["dog"])  # one forward pass for both
    """

    def __init__(
        self,
        max_bytes: int = 128 * 2**20,
        max_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_bytes, self.max_seconds = max_bytes, max_seconds
        self._cache = LruCache[tuple[Any, weakref.ref[Backbone]]](max_bytes, max_seconds, clock)
        self._used: set[Hashable] = set()  # what some thread adds to
        self._freed = threading.Condition()  # tells that there is less of it
        self._gone: list[weakref.ref[Backbone]] = []  # models that ended since this was last looked at
        # By the model's address, which is its own as long as what is shared, and with it the model, lives.
        self._shared: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def __reduce__(self) -> tuple[type[Memory], tuple[int, float | None]]:
        """A copy, and one in another process, begins empty."""
        return Memory, (self.max_bytes, self.max_seconds)

    @property
    def bytes(self) -> int:
        """The approximate size of everything that is kept."""
        return self._cache.size

    @contextmanager
    def of(self, backbone: Backbone, *what: Hashable) -> Iterator[Remembered]:
        """What is kept of a batch, told by `what`: checksums, and how pictures are seen; it is weighed at the end.

        One thread has it at a time: another one that asks for the same waits, and finds what the first made.
        """
        key = (id(backbone), torch.is_inference_mode_enabled(), *what)
        with self._freed:
            self._freed.wait_for(lambda: key not in self._used)
            self._used.add(key)
        try:
            stored: Remembered | None = self._get(key, backbone)
            remembered = Remembered() if stored is None else stored
            try:
                yield remembered
            finally:  # what was done before a method was stopped is kept, too
                self._put(key, backbone, remembered)
        finally:
            with self._freed:
                self._used.remove(key)
                self._freed.notify_all()

    def text(self, backbone: Backbone, words: Sequence[str], templates: Sequence[str]) -> Tensor | None:
        """The embedding `[D]` of a name, or None."""
        embeddings: Tensor | None = self._get((id(backbone), tuple(words), tuple(templates)), backbone)
        return embeddings

    def keep_text(self, backbone: Backbone, words: Sequence[str], templates: Sequence[str], embedding: Tensor) -> None:
        """Keeps the embedding `[D]` of a name."""
        self._put((id(backbone), tuple(words), tuple(templates)), backbone, embedding.clone())

    def shared(self, backbone: Backbone, make: Callable[[], B]) -> B:
        """What all localizers of a model have in common; made where none of those that live has it."""
        shared: B | None = self._shared.get(id(backbone))
        if shared is None:
            shared = self._shared[id(backbone)] = make()
        return shared

    def _get(self, key: Hashable, backbone: Backbone) -> Any:
        if self._gone:
            self._gone.clear()
            self._cache.forget(lambda entry: entry[1]() is None)
        value, model = self._cache.get(key) or (None, None)
        # Another model may have the same address now.
        return None if model is None or model() is not backbone else value

    def _put(self, key: Hashable, backbone: Backbone, value: Any) -> None:
        self._cache.keep(key, (value, weakref.ref(backbone, self._gone.append)), _bytes(value, set()))


def _bytes(value: Any, seen: set[int]) -> int:
    """Of all tensors in a value, each storage once; those with a graph count twice, for what the graph holds."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes() * (2 if value.requires_grad else 1)
    if dataclasses.is_dataclass(value):
        return sum(_bytes(getattr(value, part.name), seen) for part in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return sum(_bytes(part, seen) for part in value.values())
    if isinstance(value, tuple | list):
        return sum(_bytes(part, seen) for part in value)
    return 0
