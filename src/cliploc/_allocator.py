"""How a process that is ours alone keeps its memory."""

from __future__ import annotations

import ctypes
import sys

# glibc's <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
TOP_PAD = 64 * 2**20
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Has glibc keep large blocks that are freed, for the next layer's output, rather than give them back.

    By default every tensor of some MB is new memory from the system, cleared page by page when it is first written: of
    a forward pass of `mini` by 16 pictures that is 40 % of the time, of RN50's 20 %. Kept blocks cost nothing; the
    process stays at its largest size. For programs of our own only: a library has no say in its host's memory.

    All threads share one heap, as that of another thread holds no block above 64 MB, and is given back all the same.
    Call it before there are threads.

    Returns:
        Whether it is so from now on; False where the C library is another.
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
