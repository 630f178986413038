"""`endpoint`: a web service of the user's that scores, as Azure has it.

It gets `{"sample", "item", "trace_id"}` by POST and answers `{"score": number}`. Azure's preview
(https://github.com/microsoft-foundry/fine-tuning, Demos/Agentic_RFT_ToolCall_EndpointGrader) says the rest: it has ten
minutes for an answer, a failed call is tried three times more, `rate_limit` is the most calls in a second, and
`trace_id` is a UUID behind `trace_`. A call is tried again with the same `trace_id`, so that the service can tell.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from caesura.errors import InvalidGrader
from caesura.graders.calls import CallFailed, Reply, Retry, quote, read_number, send
from caesura.graders.grade import GraderFault, Observation, Score, parse_object
from caesura.graders.outbound import OutboundRefused, check_url, resolve

RETRY = Retry(max_tries=4, timeout_s=600.0, total_timeout_s=600.0)

#: What a header's name and value are made of (RFC 9110, 5.1 and 5.5).
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?|")
#: They belong to the connection, or to the form of what is sent; only the client can say them.
_REFUSED_HEADERS = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade", "expect"),
        *("host", "content-length", "content-encoding", "accept-encoding"),
    }
)
_MAX_QUOTED = 60


class Pace:
    """Lets `num_per_s` begin in a second, evenly, and in the order in which they came."""

    def __init__(
        self,
        num_per_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._interval_s = 1 / num_per_s
        self._clock = clock
        self._sleep = sleep
        self._next_s = -math.inf

    async def __aenter__(self) -> None:
        # The turn is taken before the wait: whoever comes next gets a later one.
        now_s = self._clock()
        turn_s = max(now_s, self._next_s)
        self._next_s = turn_s + self._interval_s
        if turn_s > now_s:
            await self._sleep(turn_s - now_s)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


@dataclass(frozen=True, slots=True)
class EndpointGrader:
    name: str
    url: str
    headers: Mapping[str, str]
    #: Private hosts that may be called (`check_url`).
    allowed: Sequence[str]
    client: httpx.AsyncClient
    #: Entered for each call.
    pace: AbstractAsyncContextManager[Any]
    retry: Retry = RETRY
    type: str = "endpoint"

    async def score(self, observation: Observation) -> Score:
        body = {
            "sample": dict(observation.sample),
            "item": dict(observation.item),
            "trace_id": f"trace_{uuid.uuid4()}",
        }
        content = json.dumps(body).encode()

        async def attempt() -> Reply:
            target = await resolve(self.url, self.allowed)
            return await send(self.client, target.build_request(self.client, "POST", self.headers, content))

        try:
            reply = await self.retry.call(attempt, self.pace)
        except CallFailed as failure:
            raise self._fault(f"gave no score: {failure}.") from None
        except OutboundRefused as refused:
            raise self._fault(f"is not called. {refused}") from None
        return Score(self._read_score(reply))

    def _read_score(self, reply: Reply) -> float:
        text = reply.body.decode(errors="replace")
        score = read_number((parse_object(text) or {}).get("score"))
        if score is None:
            quoted = quote(text, _MAX_QUOTED)
            raise self._fault(f"gave no score: it must answer {{\"score\": number}}, but answered: '{quoted}'")
        return score

    def _fault(self, words: str) -> GraderFault:
        return GraderFault("other_error", details=f"The endpoint of the grader '{self.name}' {words}")


def build_endpoint(
    name: str,
    url: str,
    headers: Mapping[str, str],
    rate_limit: float | None,
    *,
    allowed: Sequence[str],
    client: httpx.AsyncClient,
    param: str,
) -> EndpointGrader:
    """Raises InvalidGrader for a field below `param`. `client` is one of `open_client(max_idle_connections=0)`;
    `rate_limit` counts calls a second.
    """
    try:
        check_url(url, allowed)
    except OutboundRefused as refused:
        raise InvalidGrader(str(refused), param=f"{param}.url") from None
    for header, value in headers.items():
        check_header(header, value, f"{param}.headers")
    pace = nullcontext() if rate_limit is None else Pace(rate_limit)
    lines = {"content-type": "application/json"} | {header.lower(): value for header, value in headers.items()}
    return EndpointGrader(name, url, lines, allowed, client, pace)


def check_header(name: str, value: str, param: str) -> None:
    """Raises InvalidGrader for a header that cannot be sent. Values are not shown: they are often keys."""
    quoted = quote(name, _MAX_QUOTED)
    if not _HEADER_NAME.fullmatch(name):
        raise InvalidGrader(f"'{quoted}' is not the name of a header.", param=param)
    if name.lower() in _REFUSED_HEADERS:
        raise InvalidGrader(f"The header '{quoted}' is set by this server. Leave it out.", param=param)
    if not _HEADER_VALUE.fullmatch(value):
        raise InvalidGrader(
            f"The value of the header '{quoted}' must be printable ASCII, without blanks around it.", param=param
        )
