"""What towers computed: traces and embeddings in memory, so that new names cost no forward pass; texts on disk too.

On disk a name is one small safetensors file, by the model's weights and its sentences, under `CLIPLOC_CACHE`, else
`XDG_CACHE_HOME/cliploc`, else `~/.cache/cliploc`; deleting it is always safe, and `CLIPLOC_CACHE=off` does without.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cliploc.support.files import user_path, write_atomic
from cliploc.towers.tower import Backbone, Needs, Trace

V = TypeVar("V")


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


class _Stored(NamedTuple):
    value: Any
    size: int
    used: float


class LruCache(Generic[V]):
    """Values by key for several threads, at most `most` in size; those that were not used for longest go first."""

    def __init__(self, most: int, seconds: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        self._entries: OrderedDict[Hashable, _Stored] = OrderedDict()  # what was not used for longest comes first
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
            if key not in self._entries:
                return None
            entry = self._entries[key] = self._entries[key]._replace(used=self._clock())
            self._entries.move_to_end(key)
            value: V = entry.value
            return value

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

    def _drop(self, key: Hashable) -> None:
        self._size -= self._entries.pop(key).size


class Memory:
    """A cache of what the towers computed of pictures and names, for any localizers, in several threads too.

    Args:
        max_bytes: of all that is kept; what was not used for longest goes first.
        max_seconds: what was not used for so long goes, at the latest when something else is used; None: it stays.

    Example:
        >>> import numpy as np
        >>> from cliploc import Localizer
        >>> localizer, picture = Localizer(memory=Memory()), np.zeros((64, 48, 3), np.uint8)
        >>> cat, dog = localizer(picture, ["cat"]), localizer(picture, ["dog"])  # one forward pass for both
    """

    def __init__(self, max_bytes: int = 128 * 2**20, max_seconds: float | None = None) -> None:
        self.max_bytes, self.max_seconds = max_bytes, max_seconds
        self._cache = LruCache[tuple[Any, weakref.ref[Backbone]]](max_bytes, max_seconds)
        self._used: set[Hashable] = set()  # what some thread adds to
        self._freed = threading.Condition()  # tells that there is less of it

    def __reduce__(self) -> tuple[type[Self], tuple[int, float | None]]:
        """A copy, and one in another process, begins empty."""
        return type(self), (self.max_bytes, self.max_seconds)

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

    def _get(self, key: Hashable, backbone: Backbone) -> Any:
        value, model = self._cache.get(key) or (None, None)
        # Another model may have the same address now.
        return None if model is None or model() is not backbone else value

    def _put(self, key: Hashable, backbone: Backbone, value: Any) -> None:
        self._cache.keep(key, (value, weakref.ref(backbone)), _bytes(value, set()))


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


# ------------------------------------------------------------------------------------------- text embeddings on disk
FORMAT = 2  # part of every key: raise it when what is stored changes


def cache_folder() -> Path | None:
    """Where text embeddings are kept; None when the user turned that off, or has no home."""
    chosen = os.environ.get("CLIPLOC_CACHE")
    if chosen is not None and chosen.strip().lower() in ("", "off", "0", "none"):
        return None
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "cliploc"
    folder = user_path(base)
    return None if str(folder).startswith("~") else folder / "text"  # this user has no home, as in many containers


class TextCache:
    """Embeddings of names for one text tower; damaged files and folders that cannot be written stop nothing."""

    def __init__(self, folder: Path, text_id: str) -> None:
        self.folder = folder / _digest([FORMAT, text_id])[:32]

    def _path(self, words: Sequence[str], templates: Sequence[str]) -> Path:
        return self.folder / f"{_digest([list(words), list(templates)])}.safetensors"

    def get(self, words: Sequence[str], templates: Sequence[str], size: int) -> Tensor | None:
        """The embedding `[size]` float32 on the CPU of a name's words, or None."""
        try:
            embedding = load(self._path(words, templates).read_bytes())["embedding"]
        except (OSError, ValueError, SafetensorError, KeyError):
            return None
        return embedding if embedding.shape == (size,) and embedding.dtype == torch.float32 else None

    def put(self, words: Sequence[str], templates: Sequence[str], embedding: Tensor) -> None:
        """Keeps a name's embedding `[size]`; a reader never sees half of it."""
        path = self._path(words, templates)
        content = save({"embedding": embedding.detach().float().cpu().contiguous().clone()})
        with contextlib.suppress(OSError):  # read-only or full: then it is computed again
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, lambda temporary: temporary.write_bytes(content), durable=False)


def cache_of(backbone: Backbone) -> TextCache | None:
    """The cache of a model; None for the quick models of the package, and weights in memory."""
    folder = None if backbone.weights_file is None else cache_folder()
    return None if folder is None else TextCache(folder, backbone.text_id)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
