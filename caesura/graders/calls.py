"""Calls that graders make over HTTP: a client that keeps nothing of them, replies of bounded size, and tries again
where time may heal what failed.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, cast

import httpx

MAX_REPLY_BYTES = 2**20
CONNECT_TIMEOUT_S = 10.0
#: The wait before the second try is at most the first of these; it doubles from try to try up to the last.
MIN_BACKOFF_S = 0.5
MAX_BACKOFF_S = 20.0
_MAX_QUOTED = 300


class CallFailed(Exception):
    """No good reply came. The text says why, as the end of a sentence; users may read it.

    `may_heal`: the other side was not there, or not able to; later it may be.
    """

    def __init__(self, words: str, *, may_heal: bool = False) -> None:
        super().__init__(words)
        self.may_heal = may_heal


class ReplyTooLong(CallFailed):
    """More came than is taken."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: httpx.Headers
    body: bytes


def open_client(max_idle_connections: int) -> httpx.AsyncClient:
    """A client without redirects, proxies of the environment, and cookies; `Retry` holds its time limits.

    `SSL_CERT_FILE` and `SSL_CERT_DIR` name certificate authorities, in the place of the public ones.
    """
    return httpx.AsyncClient(
        verify=httpx.create_ssl_context(),
        timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=max_idle_connections),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"accept": "application/json", "accept-encoding": "identity"},
        follow_redirects=False,
        trust_env=False,
    )


async def send(client: httpx.AsyncClient, request: httpx.Request) -> Reply:
    """The whole reply. Raises CallFailed where it is compressed (its size would be anyone's guess) or longer than
    `MAX_REPLY_BYTES`, and httpx.TransportError where none comes.
    """
    response = await client.send(request, stream=True)
    body = bytearray()
    try:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise CallFailed("its reply is compressed, which was not asked for")
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_REPLY_BYTES:
                raise ReplyTooLong(f"its reply is longer than {MAX_REPLY_BYTES} bytes")
    finally:
        await response.aclose()
    return Reply(response.status_code, response.headers, bytes(body))


@dataclass(frozen=True, slots=True)
class _Failure:
    words: str
    may_heal: bool = True
    #: What the other side asked for, in seconds.
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Tries again after a missing or broken connection, a try that took too long, status 429, and 5xx.

    The waits double, with full jitter (a random share of each; https://aws.amazon.com/blogs/architecture/
    exponential-backoff-and-jitter/). `retry-after` is waited for on top; `x-should-retry: false` ends the tries.
    """

    max_tries: int
    #: Of one try.
    timeout_s: float
    #: Of all tries and the waits between them; not of those for a turn.
    total_timeout_s: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = random.random

    async def call(self, attempt: Callable[[], Awaitable[Reply]], turn: AbstractAsyncContextManager[Any]) -> Reply:
        """The reply of the first `attempt` that succeeds (2xx). `turn` is entered for each try: it may make it wait.

        Raises CallFailed when the tries or the time have run out, and at once for what time will not heal.
        """
        left_s = self.total_timeout_s
        num_tries = 0
        while True:
            async with turn:
                began_s = self.clock()
                outcome = await _try(attempt, min(self.timeout_s, left_s))
                left_s -= self.clock() - began_s
            if isinstance(outcome, Reply):
                return outcome
            num_tries += 1
            backoff_s = min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2.0 ** (num_tries - 1))
            wait_s = outcome.retry_after_s + self.random() * backoff_s
            if not outcome.may_heal or num_tries == self.max_tries or wait_s >= left_s:
                tried = f" (tried {num_tries} times)" if num_tries > 1 else ""
                raise CallFailed(outcome.words + tried, may_heal=outcome.may_heal)
            await self.sleep(wait_s)
            left_s -= wait_s


async def _try(attempt: Callable[[], Awaitable[Reply]], timeout_s: float) -> Reply | _Failure:
    try:
        async with asyncio.timeout(timeout_s):
            reply = await attempt()
    except TimeoutError:
        return _Failure(f"it did not answer within {timeout_s:.0f} s")
    except (httpx.TransportError, OSError) as error:
        return _Failure(_explain_transport(error))
    if 200 <= reply.status < 300:
        return reply
    may_heal = (reply.status == 429 or reply.status >= 500) and reply.headers.get("x-should-retry") != "false"
    return _Failure(_explain_reply(reply), may_heal, _read_retry_after(reply.headers))


def _explain_transport(error: Exception) -> str:
    """Without the texts of the operating system and of libraries, which name addresses and files."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, socket.gaierror):
            return "the name of its host is not known"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) or not isinstance(error, httpx.TransportError):
        return "no connection to it could be made"
    return "the connection to it broke off"


def _explain_reply(reply: Reply) -> str:
    if 300 <= reply.status < 400:
        return f"it answered with status {reply.status}, a redirect, which is not followed"
    text = quote(_find_message(reply.body), _MAX_QUOTED).rstrip(".")
    return f"it answered with status {reply.status}" + (f": {text}" if text else "")


def _find_message(body: bytes) -> str:
    """The message of an error in one of the usual forms: OpenAI's, FastAPI's, a bare text."""
    text = body.decode(errors="replace")
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for key in ("error", "message", "detail"):
        if isinstance(value, dict):
            value = cast(dict[str, Any], value).get(key, cast(Any, value))
    return value if isinstance(value, str) else text


def quote(text: str, max_characters: int) -> str:
    """`text` on one line, cut where it is longer."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= max_characters else line[:max_characters] + "…"


def read_number(value: Any) -> float | None:
    """The finite number that a JSON value is; None for every other, booleans and what no float holds among them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _read_retry_after(headers: httpx.Headers) -> float:
    """Seconds; 0 where nothing is said, or nothing that can be read. Forms: RFC 9110, 10.2.3, and OpenAI's in ms."""
    try:
        if "retry-after-ms" in headers:
            wait_s = float(headers["retry-after-ms"]) / 1000
        else:
            wait_s = float(headers.get("retry-after", 0))
    except ValueError:
        wait_s = _seconds_until(headers.get("retry-after", ""))
    return wait_s if math.isfinite(wait_s) and wait_s > 0 else 0.0


def _seconds_until(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
