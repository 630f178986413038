"""A job's events as they come, over however many connections that takes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from caesura.commands.client import Client
from caesura.commands.problems import Unreachable

#: A stream says at least every ten seconds that it is there.
READ_TIMEOUT_S = 35.0
#: A server that is away is waited for so long; between two tries the first of these, doubled up to the second.
PATIENCE_S = 300.0
RETRY_S = (0.25, 5.0)


@dataclass(frozen=True, slots=True)
class Happening:
    """An event; or there is none (None), and the server `is_away` or has nothing to tell."""

    event: dict[str, Any] | None
    is_away: bool = False


def follow(client: Client, job_id: str) -> Iterator[Happening]:
    """Every event of the job from the oldest on, each once, until there will be no more.

    Raises Unreachable where the server is not there at the beginning, or away for longer than PATIENCE_S.
    """
    last_id: str | None = None
    was_reached = False
    away_since: float | None = None
    pause_s = RETRY_S[0]
    while True:
        try:
            for data in _open(client, job_id, last_id):
                was_reached, away_since, pause_s = True, None, RETRY_S[0]
                if data == "[DONE]":
                    return
                event = None if data is None else json.loads(data)
                if event is not None and "error" in event and "id" not in event:
                    break  # the server's own fault, in mid-stream
                last_id = last_id if event is None else event["id"]
                yield Happening(event)
        except Unreachable:
            now = time.monotonic()
            away_since = away_since or now
            if not was_reached or now - away_since > PATIENCE_S:
                raise
            yield Happening(None, is_away=True)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, RETRY_S[1])


def _open(client: Client, job_id: str, last_id: str | None) -> Iterator[str | None]:
    headers = {} if last_id is None else {"last-event-id": last_id}
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=5.0)
    path = f"fine_tuning/jobs/{job_id}/events"
    with client.open(
        "GET", path, max_retries=0, params={"stream": "true"}, headers=headers, timeout=timeout
    ) as response:
        yield from read_events(response.iter_lines())


def read_events(lines: Iterable[str]) -> Iterator[str | None]:
    """The data of server-sent events; None for a comment."""
    data: list[str] = []
    for line in lines:
        if line.startswith(":"):
            yield None
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []
