"""Turns: in order, few at once, and only so many wait."""

from __future__ import annotations

import asyncio

import pytest

from cliploc.web.refusals import RefusedError
from cliploc.web.turns import AT_ONCE, Turns


def test_few_have_a_turn_in_order_and_more_than_may_wait_are_refused():
    async def ask() -> None:
        turns, entered, leave = Turns(queue=2), [], asyncio.Event()

        async def use(number: int) -> None:
            async with turns.turn():
                entered.append(number)
                await leave.wait()

        users = [asyncio.create_task(use(number)) for number in range(AT_ONCE + 2)]
        await asyncio.sleep(0)
        assert entered == list(range(AT_ONCE))
        with pytest.raises(RefusedError, match="Too many requests are waiting"):
            await use(100)
        users[-1].cancel()  # who leaves makes room
        await asyncio.sleep(0)
        users.append(asyncio.create_task(use(7)))
        leave.set()
        await asyncio.gather(*users, return_exceptions=True)
        assert entered == [*range(AT_ONCE + 1), 7]
        await use(8)

    asyncio.run(ask())
