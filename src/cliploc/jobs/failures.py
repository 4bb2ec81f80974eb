"""Why a model failed on pictures of a long run: the sentence for its notes, rows and errors."""

from __future__ import annotations

from cliploc._memory_errors import out_of_memory
from cliploc.errors import ModelError


def failure_reason(error: ModelError | RuntimeError | MemoryError) -> str:
    """The reason in one line.

    Args:
        error: raised by a `Localizer`.

    Raises:
        RuntimeError: the error itself, where it is neither the model's nor about memory: a mistake in the program.

    Example:
        >>> failure_reason(MemoryError())
        'too little memory for a single picture: use a smaller --image-size or fewer --scales'
    """
    if isinstance(error, ModelError):
        return str(error)
    if not out_of_memory(error):
        raise error
    return "too little memory for a single picture: use a smaller --image-size or fewer --scales"
