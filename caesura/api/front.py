"""What every request passes first and every answer last: its id, the key, the headers, and the net for what broke."""

from __future__ import annotations

import logging
import time
import uuid

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caesura.api.errors import answer_error
from caesura.api.keyring import KeyRing
from caesura.errors import CaesuraError, Unauthenticated
from caesura.tenancy import Caller

logger = logging.getLogger(__name__)

API_VERSION = "2020-10-01"
#: Answered without a key.
OPEN_PATHS = frozenset({"/healthz"})
#: What a body may have that is read as a whole.
MAX_BODY_BYTES = 100 * 2**20
#: These read their body piece by piece, up to a limit of their own.
STREAMED_PATHS = frozenset({"/v1/files"})


class Front:
    """ASGI middleware, the outermost of ours."""

    def __init__(self, app: ASGIApp, keyring: KeyRing, organization: str) -> None:
        self._app = app
        self._keyring = keyring
        self._organization = organization

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        request_id = f"req_{uuid.uuid4().hex}"
        answering = False

        async def send_with_headers(message: Message) -> None:
            nonlocal answering
            if message["type"] == "http.response.start":
                answering = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-version"] = API_VERSION
                headers["openai-organization"] = self._organization
                headers["openai-processing-ms"] = str(round((time.monotonic() - began) * 1000))
                headers.update(own_headers)
            await send(message)

        own_headers: dict[str, str] = {}
        # The id is for those who must tell of a fault after their answer has begun; into the headers an endpoint may
        # write what every answer of its has, a fault too.
        scope.setdefault("state", {}).update(request_id=request_id, headers=own_headers)
        scope["path"] = path = scope["path"].rstrip("/") or "/"
        told = f"request {request_id} ({scope['method']} {path})"
        try:
            if path not in OPEN_PATHS:
                scope["state"]["caller"] = await self._authenticate(Headers(scope=scope))
            await self._app(scope, receive if path in STREAMED_PATHS else _limited(receive), send_with_headers)
        except ClientDisconnect:
            logger.info("%s: the client left before it was answered", told)
        except Exception as error:
            fault = error if isinstance(error, CaesuraError) else CaesuraError()
            if answering or fault.status >= 500:
                logger.error("%s failed: %s", told, error, exc_info=fault.status != 503)
            if answering:
                raise  # the answer is half sent: only closing the connection tells the client
            await answer_error(fault)(scope, receive, send_with_headers)

    async def _authenticate(self, headers: Headers) -> Caller:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("api-key", "")
        if not given:
            raise Unauthenticated
        key = given.encode("latin-1")  # the bytes sent
        caller = self._keyring.recall(key) or await run_in_threadpool(self._keyring.find, key)
        if caller is None:
            raise Unauthenticated(
                f"Incorrect API key provided: {_mask(given)}. The server showed its key when it started for the first "
                "time, or was given it as CAESURA_API_KEY.",
                code="invalid_api_key",
            )
        return caller


def _limited(receive: Receive) -> Receive:
    """`receive`, up to MAX_BODY_BYTES."""
    num_bytes = 0

    async def receive_limited() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > MAX_BODY_BYTES:
            # The framework lets no other exception out of its reading of a body.
            raise HTTPException(413, f"Maximum content size limit ({MAX_BODY_BYTES}) exceeded ({num_bytes} bytes read)")
        return message

    return receive_limited


def _mask(key: str) -> str:
    return f"{key[:5]}***{key[-2:]}" if len(key) > 12 else "***"
