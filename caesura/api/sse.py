"""Answers as server-sent events."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from caesura.api.errors import error_body
from caesura.api.leaving import unless_client_leaves
from caesura.errors import CaesuraError

logger = logging.getLogger(__name__)

T = TypeVar("T")

DONE = "data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Server-sent events, made of what comes from `source`; both are closed when the answer ends, however it does."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None], source: AsyncGenerator[Any, None]) -> None:
        super().__init__(events)
        self._events = events
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._source), aclosing(self._events):
            await super().__call__(scope, receive, send)


def event(data: dict[str, Any], type: str | None = None) -> str:
    """One event; `type` is the name it goes by, where it has one."""
    name = "" if type is None else f"event: {type}\n"
    return f"{name}data: {json.dumps(data, ensure_ascii=False)}\n\n"


def fault_event(fault: CaesuraError) -> str:
    """How Chat Completions and Completions tell of a fault in mid-stream."""
    return event(error_body(fault))


async def open_stream(
    request: Request,
    source: AsyncGenerator[T, None],
    write: Callable[[AsyncGenerator[T, None]], AsyncGenerator[str, None]],
    tell_fault: Callable[[CaesuraError], str] = fault_event,
) -> EventStream:
    """The stream of the events that `write` makes of what `source` yields.

    The first of `source` is awaited before the answer begins, so that a fault still has its status. One that comes
    later ends the stream by the event of `tell_fault`, and is logged under the request's id.
    """
    first = await unless_client_leaves(request, _first(source))
    events = write(_with_first(first, source))
    return EventStream(_telling_faults(events, request.state.request_id, tell_fault), source)


async def _first(source: AsyncGenerator[T, None]) -> T:
    async for item in source:
        return item
    raise CaesuraError  # the engine's contract is to yield something


async def _with_first(first: T, rest: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    yield first
    async for item in rest:
        yield item


async def _telling_faults(
    events: AsyncGenerator[str, None], request_id: str, tell_fault: Callable[[CaesuraError], str]
) -> AsyncGenerator[str, None]:
    async with aclosing(events):
        try:
            async for text in events:
                yield text
        except Exception as error:  # whatever it is, this is the only way left to tell of it
            logger.exception("request %s: the stream broke off", request_id)
            yield tell_fault(error if isinstance(error, CaesuraError) else CaesuraError())
