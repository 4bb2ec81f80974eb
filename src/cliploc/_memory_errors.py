"""Tells errors about not enough memory from others: the only place, for all devices and libraries."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from cliploc.errors import CliplocError, UsageError

# As torch says it on a GPU, as its CPU allocator says it on Windows and elsewhere, as OpenCV and the system say it.
SAYINGS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "insufficient memory",
    "cannot allocate memory",
    "failed to map segment from shared object",  # a library that cannot be loaded
)
NO_ROOM_TO_LOAD = "not enough memory to load a library: close other programs"
E = TypeVar("E", bound=CliplocError)
T = TypeVar("T")
R = TypeVar("R")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, on any device. Imports no torch.

    Example:
        >>> out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"))
        True
    """
    if isinstance(error, MemoryError) or any(one.__name__ == "OutOfMemoryError" for one in type(error).__mro__):
        return True  # the second: torch's
    said = str(error).lower()
    return any(saying in said for saying in SAYINGS)


def in_halves(
    items: Sequence[T],
    work: Callable[[Sequence[T]], R],
    told: Callable[[int], None],
    begun: Callable[[], R] | None = None,
) -> Iterator[tuple[Sequence[T], R]]:
    """A batch with what is made of it, or its halves, where there is not enough memory for the whole.

    Args:
        told: called with the number of items before they are halved.
        begun: gives the result of the whole batch, whose work was begun before; None: it was not.

    Example:
        >>> def total(items):
        ...     if len(items) > 2:
        ...         raise MemoryError
        ...     return sum(items)
        >>> list(in_halves([1, 2, 3], total, lambda count: None))
        [([1, 2], 3), ([3], 3)]
    """
    try:
        made = work(items) if begun is None else begun()
    except (RuntimeError, MemoryError) as error:
        if len(items) < 2 or not out_of_memory(error):
            raise
    else:
        yield items, made
        return
    # The error is forgotten, and with it whatever its frames kept in memory.
    told(len(items))
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = (len(items) + 1) // 2
    yield from in_halves(items[:half], work, told)
    yield from in_halves(items[half:], work, told)


def not_installed(error: ImportError, advice: str, kind: type[E] = UsageError) -> E:  # type: ignore[assignment]
    """The error to raise where a package cannot be imported.

    Example:
        >>> print(not_installed(ImportError("No module named 'ray'"), "engine ray needs Ray"))
        engine ray needs Ray
    """
    return kind(f"{NO_ROOM_TO_LOAD} ({error.name or error})" if out_of_memory(error) else advice)
