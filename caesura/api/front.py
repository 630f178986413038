"""What every request passes first and every answer last: its id, the key, the headers, and the net for what broke."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caesura.api.addresses import Address, naming_model, resolve
from caesura.api.errors import answer_error
from caesura.api.gate import Gate
from caesura.errors import CaesuraError, InvalidRequest
from caesura.schema.common import STRICT_ENUMS, UNKNOWN_KEYS_ALLOWED
from caesura.settings import Settings
from caesura.tenancy import Role

logger = logging.getLogger(__name__)

API_VERSION = b"2020-10-01"
#: Answered without a key: what is the same for everybody.
OPEN_PATHS = re.compile(r"/|/healthz|/assets/.+")
#: Answered to those who may only watch.
WATCHED_PATHS = frozenset({"/metrics"})
#: Told of each request whose answer begins: its scope, the status, and the seconds until then.
See = Callable[[Scope, int, float], None]
#: What a body may have that is read as a whole.
MAX_BODY_BYTES = 100 * 2**20
MAX_CLIENT_ID = 512
#: These read their body piece by piece, up to a limit of their own.
STREAMED_PATHS = re.compile(r"/v1/(files|uploads/[^/]+/parts)")


class Front:
    """ASGI middleware, the outermost of ours."""

    def __init__(self, app: ASGIApp, gate: Gate, settings: Settings, see: See) -> None:
        self._app = app
        self._gate = gate
        self._settings = settings
        self._see = see

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        address, own_headers = resolve(scope["path"]), dict[str, str]()
        sending = _Sending(send, scope, self._see, own_headers, self._settings.organization, address.is_azure)
        # The id is for those who must tell of a fault after their answer has begun; into the headers an endpoint may
        # write what every answer of its has, a fault too.
        state: dict[str, Any] = scope.setdefault("state", {})
        state.update(request_id=sending.request_id, headers=own_headers, address=address, asked_path=scope["path"])
        scope["path"] = address.path
        told = f"request {sending.request_id} ({scope['method']} {state['asked_path']})"
        UNKNOWN_KEYS_ALLOWED.set(address.is_azure or self._settings.lenient_body)
        STRICT_ENUMS.set(self._settings.strict_enums)
        try:
            if not OPEN_PATHS.fullmatch(address.path):
                await self._admit(scope, sending)
            await self._app(scope, _readable(receive, address), sending)
        except ClientDisconnect:
            logger.info("%s: the client left before it was answered", told)
        except Exception as error:
            fault = error if isinstance(error, CaesuraError) else CaesuraError()
            if sending.has_begun or fault.status >= 500:
                logger.error("%s failed: %s", told, error, exc_info=fault.status != 503)
            if sending.has_begun:
                raise  # the answer is half sent: only closing the connection tells the client
            await answer_error(fault)(scope, receive, sending)

    async def _admit(self, scope: Scope, sending: _Sending) -> None:
        headers = Headers(scope=scope)
        check_client_id(headers.get("x-client-request-id", ""))
        host = scope["client"][0] if scope.get("client") else ""
        caller = await self._gate.admit(headers, host, sending.own_headers)
        if scope["path"] not in WATCHED_PATHS:
            caller.require(Role.MEMBER, "do this")
        sending.organization = caller.organization
        scope["state"]["caller"] = caller


class _Sending:
    """`send`, with the headers that every answer has."""

    def __init__(
        self,
        send: Send,
        scope: Scope,
        see: See,
        own_headers: dict[str, str],
        organization: str,
        is_azure: bool,
    ) -> None:
        self._send = send
        self._scope = scope
        self._see = see
        self._is_azure = is_azure
        self._began_s = time.monotonic()
        self.own_headers = own_headers
        self.organization = organization
        self.request_id = f"req_{uuid.uuid4().hex}"
        #: The answer's head is sent.
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            took_s = time.monotonic() - self._began_s
            self._see(self._scope, message["status"], took_s)
            headers: list[tuple[bytes, bytes]] = message["headers"]
            headers += (
                (b"x-request-id", self.request_id.encode()),
                (b"openai-version", API_VERSION),
                (b"openai-organization", self.organization.encode("latin-1")),
                (b"openai-processing-ms", b"%d" % round(took_s * 1000)),
            )
            if self._is_azure:
                headers.append((b"apim-request-id", str(uuid.UUID(self.request_id.removeprefix("req_"))).encode()))
            if self.own_headers:
                MutableHeaders(scope=message).update(self.own_headers)
        await self._send(message)


def check_client_id(given: str) -> None:
    """Raises InvalidRequest for an id of the client's own (X-Client-Request-Id) that no log should hold."""
    if len(given) > MAX_CLIENT_ID or not given.isascii() or not given.isprintable():
        raise InvalidRequest(
            f"The header X-Client-Request-Id must be of at most {MAX_CLIENT_ID} printable ASCII characters."
        )


def _readable(receive: Receive, address: Address) -> Receive:
    """What the endpoint at `address` reads its body by."""
    if STREAMED_PATHS.fullmatch(address.path):
        return receive
    limited = _limited(receive)
    return limited if address.deployment is None else naming_model(limited, address.deployment)


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
