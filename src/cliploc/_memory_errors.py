"""Tells errors about too little memory from others: the only place, for all devices and libraries."""

from __future__ import annotations

# As torch says it on a GPU, as its CPU allocator says it on Windows and elsewhere, as OpenCV and the system say it.
SAYINGS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "insufficient memory",
    "cannot allocate memory",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was too little memory, on any device. Imports no torch.

    Example:
        >>> out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"))
        True
    """
    if isinstance(error, MemoryError) or any(one.__name__ == "OutOfMemoryError" for one in type(error).__mro__):
        return True  # the second: torch's
    said = str(error).lower()
    return any(saying in said for saying in SAYINGS)
