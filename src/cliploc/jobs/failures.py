"""Reasons why a model failed on pictures of a long run, as a sentence for notes, rows and errors."""

from __future__ import annotations

from cliploc._process import out_of_memory
from cliploc.errors import ModelError


def failure_reason(error: ModelError | RuntimeError | MemoryError) -> str:
    """The reason of a failure, in one line.

    Example:
        >>> failure_reason(MemoryError())
        'not enough memory for a single picture: use a smaller --image-size or fewer --scales'
    """
    if isinstance(error, ModelError):
        return str(error)
    if not out_of_memory(error):
        raise error
    return "not enough memory for a single picture: use a smaller --image-size or fewer --scales"
