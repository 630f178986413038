"""The header `Idempotency-Key`: a POST that is sent again with its key is answered as it was the first time.

One place for all endpoints, those to come too: a middleware just inside `front`, which knows by then whose key it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caesura.api.errors import answer_error
from caesura.api.fingerprint import HashedBody
from caesura.errors import CaesuraError, DatabaseUnavailable, InvalidRequest, KeyInterrupted, KeyReused
from caesura.store import Store
from caesura.store.idempotency import IdempotencyKeys, KeptAnswer, KnownKey

logger = logging.getLogger(__name__)

HEADER = "idempotency-key"
REPLAYED_HEADER = "idempotent-replayed"
MAX_KEY_CHARS = 255
#: A longer answer is not kept.
MAX_KEPT_BYTES = 16 * 2**20


class Idempotency:
    """ASGI middleware. Requests with the same key of the same project are answered one after the other."""

    def __init__(self, app: ASGIApp, store: Store) -> None:
        self._app = app
        self._store = store
        #: Project and key of what is being answered → set when it has been.
        self._answering: dict[tuple[str, str], asyncio.Event] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" and scope["method"] == "POST" else Headers()
        caller = scope.get("state", {}).get("caller")
        key = headers.get(HEADER)
        if key is None or caller is None:
            await self._app(scope, receive, send)
            return
        _check(key)
        query = scope["query_string"].decode("latin-1")
        request = f"{scope['method']} {scope['path']}" + (f"?{query}" if query else "")
        keys = self._store.of(caller.project).idempotency
        body = HashedBody(receive, headers)
        async with self._alone(caller.project, key):
            known = await run_in_threadpool(keys.claim, key, request)
            if known is None:
                await self._answer_first(keys, key, scope, body, send)
            else:
                await _answer_again(known, request, body, send)

    @asynccontextmanager
    async def _alone(self, project: str, key: str) -> AsyncGenerator[None, None]:
        """Wait until no other request with this key is being answered, and keep others waiting."""
        while (answering := self._answering.get((project, key))) is not None:
            await answering.wait()
        self._answering[project, key] = answered = asyncio.Event()
        try:
            yield
        finally:
            del self._answering[project, key]
            answered.set()

    async def _answer_first(self, keys: IdempotencyKeys, key: str, scope: Scope, body: HashedBody, send: Send) -> None:
        """Have the request answered. The answer is kept before the client sees any of it."""
        answer = _Answer(send)
        is_kept = False
        try:
            try:
                with keys.marking(key):
                    await self._app(scope, body.receive, answer.send)
            except CaesuraError as error:
                if answer.has_left or error.status >= 500:
                    raise
                await answer_error(error)(scope, body.receive, answer.send)
            is_kept = await _keep(keys, key, body, answer)
        finally:
            if not is_kept:
                await run_in_threadpool(keys.release, key, even_written=answer.is_stream)
        await answer.leave()


class _Answer:
    """An answer in the making. It is held back until it is told to `leave`; a stream, or what is too long, is not."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []
        self._num_bytes = 0
        self.has_left = False
        self.is_stream = False

    async def send(self, message: Message) -> None:
        self._held.append(message)
        self._num_bytes += len(message.get("body", b""))
        if message["type"] == "http.response.start":
            self.is_stream = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
        if self.has_left or self.is_stream or self._num_bytes > MAX_KEPT_BYTES:
            await self.leave()

    async def leave(self) -> None:
        self.has_left = True
        held, self._held = self._held, []
        for message in held:
            await self._send(message)

    def whole(self) -> KeptAnswer | None:
        """None where it left before it was whole."""
        if self.has_left or not self._held or self._held[-1].get("more_body", False):
            return None
        start, *bodies = self._held
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
        return KeptAnswer(start["status"], headers, b"".join(message.get("body", b"") for message in bodies))


async def _keep(keys: IdempotencyKeys, key: str, body: HashedBody, answer: _Answer) -> bool:
    """Keep the answer, if it is one to be kept."""
    whole = answer.whole()
    if whole is None or whole.status >= 500 or whole.status == 429:
        return False
    # What made something without reading its body to the end reads it now; what refused it need not.
    fingerprint = await body.read() if whole.status < 300 else body.fingerprint
    if fingerprint is None:
        return False
    try:
        await run_in_threadpool(keys.keep, key, fingerprint, whole)
    except DatabaseUnavailable:  # what was made is made: its answer is worth more than the next one's
        logger.exception("the answer to a request with an Idempotency-Key could not be kept")
    return True


async def _answer_again(known: KnownKey, request: str, body: HashedBody, send: Send) -> None:
    """Raises KeyReused, KeyInterrupted."""
    if known.request != request:
        raise KeyReused(
            f"This Idempotency-Key came with another request before: {known.request}. "
            "Send every new request with a new key."
        )
    if known.answer is None:
        raise KeyInterrupted(
            "The first request with this Idempotency-Key made something, but its answer was lost, as when the server "
            "is stopped. Look at the list for what it made; to make another one, send a new key."
        )
    if await body.read() != known.fingerprint:
        raise KeyReused(
            "This Idempotency-Key came with another body before. Send every new request with a new key, and a request "
            "again with the same bytes."
        )
    headers = [*known.answer.headers, (REPLAYED_HEADER, "true")]
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": known.answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": known.answer.body})


def _check(key: str) -> None:
    """Raises InvalidRequest."""
    if not 0 < len(key) <= MAX_KEY_CHARS or not all(" " <= character <= "~" for character in key):
        raise InvalidRequest(
            f"Invalid Idempotency-Key: it must be 1 to {MAX_KEY_CHARS} printable ASCII characters, and has {len(key)}. "
            "A random UUID does.",
            code="invalid_idempotency_key",
        )
