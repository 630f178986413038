"""Several generators at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def interleave(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """What the sources yield, as it comes, each with its source's place among them.

    All of them run at once, none more than an item ahead of who reads. The first that raises ends all the others, and
    so does closing this generator.
    """
    turns: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue(maxsize=1)

    async def drain(place: int, source: AsyncGenerator[T, None]) -> None:
        end = None
        try:
            async with aclosing(source):
                async for item in source:
                    await turns.put((place, item))
        except Exception as error:
            end = error
        await turns.put(end)

    tasks = [asyncio.create_task(drain(place, source)) for place, source in enumerate(sources)]
    try:
        num_running = len(tasks)
        while num_running:
            turn = await turns.get()
            if isinstance(turn, BaseException):
                raise turn
            if turn is None:
                num_running -= 1
            else:
                yield turn
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
