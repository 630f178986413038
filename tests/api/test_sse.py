from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.types import Message

from caesura.api.sse import EventStream

SCOPE: Any = {"type": "http", "asgi": {"spec_version": "2.0"}}


async def endless(number: int | None = None) -> AsyncGenerator[str, None]:
    """Texts without end, or so many."""
    while number is None or number:
        number = None if number is None else number - 1
        yield "text"
        await asyncio.sleep(0)


async def writing(source: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async for text in source:
        yield f"data: {text}\n\n"


class Client:
    """Reads until it has `num_read` messages; then it leaves, or its connection breaks."""

    def __init__(self, num_read: int, breaks: bool) -> None:
        self._num_read = num_read
        self._breaks = breaks
        self._left = asyncio.Event()

    async def receive(self) -> Message:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, _message: Message) -> None:
        self._num_read -= 1
        if self._num_read > 0:
            return
        if self._breaks:
            raise OSError("broken pipe")
        self._left.set()


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("num_read", [1, 2, 5])
def test_source_and_events_are_closed_by_a_client_who_leaves(num_read: int, breaks: bool) -> None:
    async def run() -> None:
        # Held here, so that they are not closed by being forgotten.
        source = endless()
        events = writing(source)
        await anext(source)  # as an endpoint does, before the answer begins
        client = Client(num_read, breaks)
        try:
            await EventStream(events, source)(SCOPE, client.receive, client.send)
        except* OSError:
            assert breaks
        assert source.ag_frame is None
        assert events.ag_frame is None

    asyncio.run(run())


def test_source_and_events_are_closed_at_their_end() -> None:
    async def run() -> None:
        source = endless(3)
        events = writing(source)
        client = Client(100, breaks=False)
        await EventStream(events, source)(SCOPE, client.receive, client.send)
        assert source.ag_frame is None
        assert events.ag_frame is None

    asyncio.run(run())
