"""Threads and memory of the process, for programs of our own only: a library has no say in its host's process."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

MAX_THREADS = 1024  # beyond what machines have; a hundred times more and the system refuses to start them
# GNU's OpenMP (torch on Linux) reads the first, LLVM's and Intel's (macOS, MKL) the second.
PASSIVE = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
OTHER_WAIT_VARIABLES = ("GOMP_SPINCOUNT", "KMP_LIBRARY")
TURN = 0.0005  # seconds after which a thread gives Python up to another one that waits for it; Python's own: 0.005

# glibc's <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
TOP_PAD = 64 * 2**20
NEVER = 2**31 - 1
IMPORTED = 200_000  # objects after which Python's collector begins: a first result makes 190,000, mostly torch's

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


def take_short_turns() -> None:
    """Has Python's threads take shorter turns: the tower's would wait 5 ms for each layer's moment of Python."""
    sys.setswitchinterval(TURN)


def give_way() -> None:
    """Gives the starting process's tower thread a little priority: without it bench/benchmark.py takes 7 % longer."""
    if hasattr(os, "nice"):
        os.nice(5)
    if hasattr(os, "SCHED_BATCH"):  # does not interrupt others when it wakes up
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


# -------------------------------------------------------------------------------------------------------------- memory
def keep_freed_memory() -> bool:
    """Has glibc keep freed blocks, whose clearing takes 20–40 % of a forward pass; before there are threads."""
    return _set((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, TOP_PAD), (M_ARENA_MAX, 1))


def collect_late() -> None:
    """Has Python's collector leave alone what imports make: it walks through all of it again and again, and at exit."""
    usual = gc.get_threshold()

    def begin(*_: object) -> None:
        gc.callbacks.remove(begin)
        gc.freeze()
        gc.set_threshold(*usual)

    gc.callbacks.append(begin)
    gc.set_threshold(IMPORTED)
    atexit.register(gc.freeze)


def share_heaps() -> bool:
    """Has glibc keep two heaps for all threads, or a server of many threads grows; before there are threads."""
    return _set((M_ARENA_MAX, 2))


def _set(*parameters: tuple[int, int]) -> bool:
    if sys.platform != "linux":
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    done = [mallopt(parameter, value) for parameter, value in parameters]  # all of them, whatever the first says
    return all(done)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, on any device and by any library. Imports no torch."""
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True  # the second: torch's
    said = str(error).lower()
    return any(saying in said for saying in SAYINGS)


def in_halves(items: B, work: Callable[[B], R], told: Callable[[int], None]) -> Iterator[tuple[B, R]]:
    """A batch with its result, or its halves (`told` their size) where memory lacks."""
    try:
        made = work(items)
    except (RuntimeError, MemoryError) as error:
        if len(items) < 2 or not out_of_memory(error):
            raise
    else:
        yield items, made
        return
    told(len(items))
    for half in halves(items):
        yield from in_halves(half, work, told)


def halves(items: B) -> tuple[B, B]:
    """The halves of a batch that memory lacked for; its error is forgotten, with whatever its frames kept in memory."""
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = (len(items) + 1) // 2
    return items[:half], items[half:]
