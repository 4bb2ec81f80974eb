"""Turns: few requests at a time use a model, in the order in which they came, and only so many wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

from cliploc.web.refusals import RefusedError

QUEUE_FULL = "Too many requests are waiting: try again in a minute."
AT_ONCE = 2  # all models run in one thread: while one request has it, another's picture is read or drawn


class Turns:
    """Gives requests their turns."""

    def __init__(self, queue: int) -> None:
        self._room = queue + AT_ONCE
        self._room_before = queue
        self._free = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def turn(self, model: Future[Any] | None = None) -> AsyncIterator[None]:
        """Waits for the model, which keeps nobody from a turn, and for a turn, which lasts as long as the block."""
        if model is not None and not model.done():
            if not self._room_before:
                raise RefusedError(503, QUEUE_FULL)
            self._room_before -= 1
            try:
                await asyncio.shield(asyncio.wrap_future(model))  # who leaves does not end it for the others
            finally:
                self._room_before += 1
        if not self._room:
            raise RefusedError(503, QUEUE_FULL)
        self._room -= 1
        try:
            async with self._free:
                yield
        finally:
            self._room += 1
