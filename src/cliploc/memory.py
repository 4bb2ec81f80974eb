"""What a model computed, kept in memory: new names on a photograph seen before cost no forward pass of the image tower.

Disk keeps embeddings of names only (`cliploc.text_cache`); this keeps traces of pictures too, and is gone with the
process.
"""

from __future__ import annotations

import dataclasses
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cliploc.tower import Backbone, Needs, Trace


@dataclass
class Remembered:
    """A batch of pictures as one model saw it."""

    # By what they hold. Each is made as if it were the only one, so that no result depends on what was asked before.
    traces: dict[Needs, Trace] = field(default_factory=dict)
    # What methods made of it that depends on no text; see `Context.cache`.
    shared: dict[Any, Any] = field(default_factory=dict)

    def trace(self, needs: Needs, make: Callable[[], Trace]) -> Trace:
        """The trace that holds this, made if it is not there."""
        if needs not in self.traces:
            self.traces[needs] = make()
        return self.traces[needs]


@dataclass
class _Kept:
    value: Any
    owner: weakref.ref[Backbone]
    used: float
    size: int = 0


class Memory:
    """A cache of what the towers computed of pictures and names, for localizers that run one after the other.

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
        self._clock = clock
        self._kept: dict[Hashable, _Kept] = {}  # what was not used for longest comes first
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """The approximate size of everything that is kept."""
        with self._lock:
            return sum(kept.size for kept in self._kept.values())

    @contextmanager
    def of(self, backbone: Backbone, *what: Hashable) -> Iterator[Remembered]:
        """What is kept of a batch of pictures, to be read and added to; it is weighed at the end.

        `what` tells it from all else: checksums of the pictures, and how they are seen.
        """
        key = (id(backbone), torch.is_inference_mode_enabled(), *what)
        found: Remembered | None = self._get(key, backbone)
        remembered = Remembered() if found is None else found
        try:
            yield remembered
        finally:  # what was done before a method was stopped is kept, too
            self._put(key, backbone, remembered)

    def text(self, backbone: Backbone, words: Sequence[str], templates: Sequence[str]) -> Tensor | None:
        """The embedding `[D]` of a name, or None."""
        found: Tensor | None = self._get((id(backbone), tuple(words), tuple(templates)), backbone)
        return found

    def keep_text(self, backbone: Backbone, words: Sequence[str], templates: Sequence[str], embedding: Tensor) -> None:
        """Keeps the embedding `[D]` of a name."""
        self._put((id(backbone), tuple(words), tuple(templates)), backbone, embedding.clone())

    def _get(self, key: Hashable, backbone: Backbone) -> Any:
        with self._lock:
            self._forget()
            kept = self._kept.pop(key, None)
            if kept is None or kept.owner() is not backbone:  # another model may have the same address now
                return None
            kept.used = self._clock()
            self._kept[key] = kept  # as the last
            return kept.value

    def _put(self, key: Hashable, backbone: Backbone, value: Any) -> None:
        size = _bytes(value, set())
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = _Kept(value, weakref.ref(backbone), self._clock(), size)
            self._forget()

    def _forget(self) -> None:
        """Removes what is too old, what exceeds the limit, and what belongs to a model that is gone."""
        oldest = -float("inf") if self.max_seconds is None else self._clock() - self.max_seconds
        for key in [key for key, kept in self._kept.items() if kept.used < oldest or kept.owner() is None]:
            del self._kept[key]
        total = sum(kept.size for kept in self._kept.values())
        while total > self.max_bytes:
            total -= self._kept.pop(next(iter(self._kept))).size


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
