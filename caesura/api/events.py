"""`/fine_tuning/jobs/{id}/events`: in pages, newest first; or as a stream of all of them, as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from caesura.api.asked import json_answer
from caesura.api.route import Route
from caesura.api.sse import DONE, open_stream
from caesura.api.state import Limit, QueryText, Server, ServerDependency
from caesura.jobs import Event
from caesura.schema.common import Page
from caesura.schema.jobs import JobEvent

router = APIRouter(prefix="/v1/fine_tuning/jobs", route_class=Route)

MAX_PAGE = 1000
#: How often a stream asks for more: workers write from processes of their own.
POLL_S = 0.25
#: A stream that has nothing to tell says so this often, so that either side finds out that the other is gone.
SILENCE_S = 10.0
#: A stream ends after so long, and its client comes back: with a key that must still be good.
STREAM_S = 300.0
#: A comment, which clients of server-sent events pass over: all that there is has been told.
UP_TO_DATE = ": up to date\n\n"


@dataclass(frozen=True, slots=True)
class _Told:
    events: list[Event]
    #: The job will tell nothing after them.
    are_last: bool


@router.get("/{job_id}/events", response_model=None)
async def list_events(
    job_id: str,
    request: Request,
    server: ServerDependency,
    after: QueryText = None,
    limit: Limit = 20,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """`stream` is no part of OpenAI's API: every event from the oldest on, or behind the one that the header
    Last-Event-ID names; `after` and `limit` mean nothing to it.
    """
    if stream:
        return await open_stream(request, _follow(server, job_id, last_event_id), _write)
    events, has_more = await run_in_threadpool(
        server.store.jobs.list_events, job_id, after=after, limit=min(limit, MAX_PAGE)
    )
    return json_answer(Page(data=[_to_wire(event) for event in events], has_more=has_more))


async def _follow(server: Server, job_id: str, behind: str | None) -> AsyncGenerator[_Told, None]:
    """What the job tells; nothing, where it was silent for a while."""
    end_at, silent_until = time.monotonic() + STREAM_S, 0.0
    are_last = False
    while not are_last:
        events, are_last = await run_in_threadpool(
            server.store.jobs.follow_events, job_id, behind=behind, limit=MAX_PAGE
        )
        if events or are_last:
            behind, silent_until = events[-1].id if events else behind, 0.0
            yield _Told(events, are_last)
        elif time.monotonic() >= silent_until:
            silent_until = time.monotonic() + SILENCE_S
            yield _Told([], are_last=False)
        if server.is_stopping.is_set() or time.monotonic() >= end_at:
            return
        if not events:
            await asyncio.sleep(POLL_S)


async def _write(told: AsyncGenerator[_Told, None]) -> AsyncGenerator[str, None]:
    async for page in told:
        yield "".join(f"id: {one.id}\ndata: {_to_wire(one).model_dump_json()}\n\n" for one in page.events)
        if page.are_last:
            yield DONE
        elif not page.events:
            yield UP_TO_DATE


def _to_wire(event: Event) -> JobEvent:
    return JobEvent(
        id=event.id,
        created_at=event.created_at,
        level=event.level,
        message=event.message,
        type=event.type,
        data=event.data,
    )
