"""Values out of texts, as people write them into options and files."""

from __future__ import annotations

from contextlib import suppress

from cliploc.errors import UsageError


def parse_share(text: str, expected: str) -> float:
    """A number from 0 to 1.

    Args:
        text: as it was written.
        expected: how the error begins: where, and what was expected there.

    Raises:
        UsageError: it is no such number.
    """
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise UsageError(f"{expected}, got {text}")
