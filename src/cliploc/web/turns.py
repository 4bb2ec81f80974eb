"""Turns: few requests at a time use a model, in the order in which they came, and only so many wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cliploc.web.refusals import RefusedError

QUEUE_FULL = "Too many requests are waiting: try again in a minute."
AT_ONCE = 2  # all models run in one thread: while one request has it, another's picture is read or drawn


class Turns:
    """Gives requests their turns.

    Args:
        queue: how many requests may wait; more are refused.

    Example:
        >>> async def ask(turns: Turns) -> str:
        ...     async with turns.turn():
        ...         return "answered"
        >>> asyncio.run(ask(Turns(queue=1)))
        'answered'
    """

    def __init__(self, queue: int) -> None:
        self._room = queue + AT_ONCE
        self._free = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for a turn, which lasts as long as the block.

        Raises:
            RefusedError: too many wait.
        """
        if not self._room:
            raise RefusedError(503, QUEUE_FULL)
        self._room -= 1
        try:
            async with self._free:
                yield
        finally:
            self._room += 1
