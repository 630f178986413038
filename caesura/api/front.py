"""What every request passes first and every answer last: its id, the key, the headers, and the net for what broke."""

from __future__ import annotations

import hmac
import logging
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caesura.api.errors import answer_error
from caesura.errors import CaesuraError, Unauthenticated

logger = logging.getLogger(__name__)

API_VERSION = "2020-10-01"
#: Answered without a key.
OPEN_PATHS = frozenset({"/healthz"})


class Front:
    """ASGI middleware, the outermost of ours."""

    def __init__(self, app: ASGIApp, api_key: str, organization: str) -> None:
        self._app = app
        self._api_key = api_key.encode()
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
            await send(message)

        path: str = scope["path"]
        if len(path) > 1 and path.endswith("/"):
            scope["path"] = path.rstrip("/")
        try:
            if path not in OPEN_PATHS:
                self._check_key(Headers(scope=scope))
            await self._app(scope, receive, send_with_headers)
        except CaesuraError as error:
            await answer_error(error)(scope, receive, send_with_headers)
        except Exception:
            logger.exception("request %s (%s %s) broke", request_id, scope["method"], path)
            if answering:
                raise  # the answer is half sent: only closing the connection tells the client
            await answer_error(CaesuraError())(scope, receive, send_with_headers)

    def _check_key(self, headers: Headers) -> None:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("api-key", "")
        if not given:
            raise Unauthenticated
        if not hmac.compare_digest(given.encode(), self._api_key):
            raise Unauthenticated(
                f"Incorrect API key provided: {_mask(given)}. The server showed its key when it started for the first "
                "time, or was given it as CAESURA_API_KEY.",
                code="invalid_api_key",
            )


def _mask(key: str) -> str:
    return f"{key[:5]}***{key[-2:]}" if len(key) > 12 else "***"
