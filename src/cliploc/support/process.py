"""How threads wait, for our command only, and what lack of memory is."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

MAX_THREADS = 1024  # beyond what machines have; a hundred times more and the system refuses to start them
# GNU's OpenMP (torch on Linux) reads the first, LLVM's and Intel's (macOS, MKL) the second.
PASSIVE = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
OTHER_WAIT_VARIABLES = ("GOMP_SPINCOUNT", "KMP_LIBRARY")

# As torch says it on a GPU, as its CPU allocator says it on Windows and elsewhere, as OpenCV and the system say it.
SAYINGS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "insufficient memory",
    "cannot allocate memory",
    "failed to map segment from shared object",  # a library that cannot be loaded
)


B = TypeVar("B", bound=Any)  # what can be halved: a list or a tensor
R = TypeVar("R")


# ------------------------------------------------------------------------------------------------------------- threads
def wait_passively() -> bool:
    """Has threads sleep while they wait (bench/waiting.py), in child processes too; before torch is loaded."""
    if "torch" in sys.modules or any(name in os.environ for name in (*PASSIVE, *OTHER_WAIT_VARIABLES)):
        return False
    os.environ.update(PASSIVE)
    return True


# -------------------------------------------------------------------------------------------------------------- memory
def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, on any device and by any library. Imports no torch."""
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True  # the second: torch's
    message = str(error).lower()
    return any(saying in message for saying in SAYINGS)


def in_halves(items: B, work: Callable[[B], R], on_halved: Callable[[int], None]) -> Iterator[tuple[B, R]]:
    """A batch with its result, or its halves (`on_halved` gets their size) where memory lacks."""
    try:
        made = work(items)
    except (RuntimeError, MemoryError) as error:
        if len(items) < 2 or not out_of_memory(error):
            raise
    else:
        yield items, made
        return
    on_halved(len(items))
    for half in halves(items):
        yield from in_halves(half, work, on_halved)


def halves(items: B) -> tuple[B, B]:
    """The halves of a batch that memory lacked for; its error is forgotten, with whatever its frames kept in memory."""
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = (len(items) + 1) // 2
    return items[:half], items[half:]
