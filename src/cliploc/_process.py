"""The process: its threads, how it keeps its memory, and what it does when there is not enough of it.

Threads and memory are set for programs of our own only: a library has no say in its host's process.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

MAX_THREADS = 1024  # beyond what machines have; a hundred times more and the system refuses to start them
# GNU's OpenMP (torch on Linux) reads the first, LLVM's and Intel's (macOS, MKL) the second.
PASSIVE = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
OTHER_WAIT_VARIABLES = ("GOMP_SPINCOUNT", "KMP_LIBRARY")
TURN = 0.0005  # seconds after which a thread gives Python up to another one that waits for it; Python's own: 0.005

# glibc's <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
TOP_PAD = 64 * 2**20
NEVER = 2**31 - 1

# As torch says it on a GPU, as its CPU allocator says it on Windows and elsewhere, as OpenCV and the system say it.
SAYINGS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "insufficient memory",
    "cannot allocate memory",
    "failed to map segment from shared object",  # a library that cannot be loaded
)


class Batch(Protocol):
    """What can be halved: a list or a tensor."""

    def __len__(self) -> int:
        """The number of items."""
        ...

    def __getitem__(self, part: slice, /) -> Any:
        """Some of the items."""
        ...


B = TypeVar("B", bound=Batch)
R = TypeVar("R")


# ------------------------------------------------------------------------------------------------------------- threads
def wait_passively() -> bool:
    """Has threads sleep while they wait for each other, instead of spinning; whether it is so from now on.

    By default a thread that is done with its share of a layer spins until the others are. Beside another busy program,
    whose turn keeps one of them from running, that burns whole time slices: see `bench/waiting.py`. Processes that this
    one starts inherit it. OpenMP reads its variables once: it is too late when torch is loaded. What the user chose
    stays.
    """
    if "torch" in sys.modules or any(name in os.environ for name in (*PASSIVE, *OTHER_WAIT_VARIABLES)):
        return False
    os.environ.update(PASSIVE)
    return True


def take_short_turns() -> None:
    """Has the threads of Python take shorter turns.

    Only one thread at a time runs Python. The tower's thread needs it for a moment after each layer, while another one
    makes boxes and rows: with Python's own turns it may wait 5 ms each time.
    """
    sys.setswitchinterval(TURN)


def give_way() -> None:
    """Has this process give way to the thread that runs the tower, in the process that started it.

    With equal rights that thread often waits for the processor: `bench/benchmark.py` then takes 7 % longer. The
    priority is only a little lower: beside a busy program, a process with a much lower one would hardly run.
    """
    if hasattr(os, "nice"):
        os.nice(5)
    if hasattr(os, "SCHED_BATCH"):  # does not interrupt others when it wakes up
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


# -------------------------------------------------------------------------------------------------------------- memory
def keep_freed_memory() -> bool:
    """Has glibc keep large blocks that are freed for the next layer's output; False where the C library is another.

    By default every tensor of some MB is new memory from the system, cleared page by page when it is first written: of
    a forward pass of `mini` by 16 pictures that is 40 % of the time, of RN50's 20 %. Kept blocks cost nothing; the
    process stays at its largest size. All threads share one heap, as that of another thread holds no block above 64 MB,
    and is given back all the same. Call it before there are threads.
    """
    return _set((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, TOP_PAD), (M_ARENA_MAX, 1))


def share_heaps() -> bool:
    """Has glibc keep two heaps for all threads, instead of up to eight for each processor.

    What one thread frees can then be used by the next. With many heaps, a server of many short-lived threads grows
    until each heap has seen the largest picture. Call it before there are threads.
    """
    return _set((M_ARENA_MAX, 2))


def _set(*parameters: tuple[int, int]) -> bool:
    if sys.platform != "linux":
        return False
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


def in_halves(
    items: B, work: Callable[[B], R], told: Callable[[int], None], begun: Callable[[], R] | None = None
) -> Iterator[tuple[B, R]]:
    """A batch with what is made of it, or its halves, where there is not enough memory for the whole.

    `told` is called with the number of items before they are halved; `begun` gives the result of the whole batch, where
    its work was begun before.
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
