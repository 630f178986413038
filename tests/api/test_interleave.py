from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from caesura.api.interleave import interleave


class Source:
    """Yields 0, 1, 2, … as it is allowed to, and raises what it is given."""

    def __init__(self, number: int, fault: Exception | None = None) -> None:
        self.allowed = asyncio.Semaphore(0)
        self.number = number
        self.fault = fault
        self.num_begun = 0
        self.is_closed = False

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for item in range(self.number):
                self.num_begun += 1
                await self.allowed.acquire()
                yield item
            if self.fault is not None:
                raise self.fault
        finally:
            self.is_closed = True

    def allow(self, number: int = 1) -> None:
        for _ in range(number):
            self.allowed.release()


def test_items_come_as_they_are_made_whatever_their_source() -> None:
    async def run() -> None:
        first, second = Source(2), Source(2)
        items = interleave([first.items(), second.items()])
        for source, expected in [(second, (1, 0)), (first, (0, 0)), (second, (1, 1)), (first, (0, 1))]:
            source.allow()
            assert await anext(items) == expected
        assert await anext(items, None) is None
        assert first.is_closed
        assert second.is_closed

    asyncio.run(run())


def test_nothing_begins_before_the_first_item_is_asked_for() -> None:
    async def run() -> None:
        source = Source(1)
        await interleave([source.items()]).aclose()
        assert source.num_begun == 0

    asyncio.run(run())


def test_a_source_that_raises_ends_the_others() -> None:
    async def run() -> None:
        broken, endless = Source(0, ValueError("broken")), Source(10)
        with pytest.raises(ValueError, match="broken"):
            [item async for item in interleave([endless.items(), broken.items()])]
        assert endless.is_closed

    asyncio.run(run())


def test_leaving_early_closes_every_source() -> None:
    async def run() -> None:
        sources = [Source(10) for _ in range(3)]
        async with aclosing(interleave([source.items() for source in sources])) as items:
            sources[1].allow()
            assert await anext(items) == (1, 0)
        assert all(source.is_closed for source in sources)

    asyncio.run(run())


def test_who_is_cancelled_while_waiting_closes_every_source() -> None:
    async def run() -> None:
        sources = [Source(10) for _ in range(3)]
        waiting = asyncio.create_task(anext(interleave([source.items() for source in sources])))
        while not all(source.num_begun for source in sources):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert all(source.is_closed for source in sources)

    asyncio.run(run())


def test_no_source_runs_far_ahead_of_who_reads() -> None:
    async def run() -> None:
        source = Source(100)
        source.allow(100)
        async with aclosing(interleave([source.items()])) as items:
            await anext(items)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert source.num_begun <= 4

    asyncio.run(run())
