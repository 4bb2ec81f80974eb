"""Turns: in order, few at once, and only so many wait."""

import asyncio
from concurrent.futures import Future

import pytest

from cliploc.web.answers import AT_ONCE, Turns
from cliploc.web.clients import RefusedError


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


def test_who_waits_for_a_model_keeps_nobody_from_a_turn():
    async def ask() -> None:
        turns, loading, loaded = Turns(queue=3), Future(), Future()
        loading.set_running_or_notify_cancel()
        loaded.set_result(None)
        entered = []

        async def use(number: int, model: Future) -> None:
            async with turns.turn(model):
                entered.append(number)

        users = [asyncio.create_task(use(number, loading)) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="Too many requests are waiting"):
            await use(100, loading)
        for number in range(10, 20):
            await use(number, loaded)
        users[0].cancel()  # who leaves does not end it for the others
        await asyncio.sleep(0)
        loading.set_result(None)
        await asyncio.gather(*users, return_exceptions=True)
        assert entered == [*range(10, 20), 1, 2]
        failed = Future()
        failed.set_running_or_notify_cancel()
        asking = asyncio.create_task(use(0, failed))
        await asyncio.sleep(0)
        failed.set_exception(ValueError("no weights"))
        with pytest.raises(ValueError, match="no weights"):
            await asking

    asyncio.run(ask())
