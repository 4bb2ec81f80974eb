"""Turns: in order, few at once, and only so many wait."""

import asyncio

from cliploc.web.answers import AT_ONCE, Turns


def test_who_would_wait_too_long_is_refused():
    async def ask() -> None:
        turns, leave = Turns(queue=14, seconds=0.05), asyncio.Event()

        async def use() -> None:
            async with turns.turn():
                await leave.wait()

        users = [asyncio.create_task(use()) for _ in range(4)]
        await asyncio.sleep(0)
        assert turns.waiting == 4 - AT_ONCE
        ends = await asyncio.gather(*users[AT_ONCE:], return_exceptions=True)
        assert ({one.status for one in ends}, turns.waiting) == ({503}, 0)
        leave.set()
        await asyncio.gather(*users[:AT_ONCE])
        await use()

    asyncio.run(ask())
