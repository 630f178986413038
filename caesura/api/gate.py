"""Who may come in: the key of a request, the project that it works in, and how often it may ask."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from caesura.api.keyring import KeyRing
from caesura.api.limits import Meter, Patience
from caesura.errors import RateLimited, Unauthenticated
from caesura.tenancy import Caller

logger = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]


class Gate:
    """`requests_per_minute`: of a key that has no number of its own; None: as many as it likes."""

    def __init__(self, keyring: KeyRing, requests_per_minute: int | None, sleep: Sleep = asyncio.sleep) -> None:
        self._keyring = keyring
        self._requests_per_minute = requests_per_minute
        self._sleep = sleep
        self._meter = Meter()
        self._patience = Patience()

    async def admit(self, headers: Headers, address: str, answer_headers: dict[str, str]) -> Caller:
        """The caller of a request from `address`; what is left to its key goes into `answer_headers`.

        Raises Unauthenticated, for a wrong key after a while, and RateLimited.
        """
        given = _key_of(headers)
        if not given:
            raise Unauthenticated
        sent = given.encode("latin-1")  # the bytes that were sent
        caller = self._keyring.recall(sent) or await run_in_threadpool(self._keyring.find, sent)
        if caller is None:
            logger.warning("a wrong key, %s, from %s", _mask(given), address)
            await self._sleep(self._patience.delay_s(address))
            raise Unauthenticated(
                f"Incorrect API key provided: {_mask(given)}. The server showed its first key when it started for the "
                "first time, or was given it as CAESURA_API_KEY; `caesura keys create` makes more. A key that was "
                "revoked or has expired opens nothing.",
                code="invalid_api_key",
            )
        self._count(caller, answer_headers)
        organization, project = headers.get("openai-organization", ""), headers.get("openai-project", "")
        if not organization and not project:
            return caller
        return await run_in_threadpool(self._keyring.select, caller, organization, project)

    def _count(self, caller: Caller, answer_headers: dict[str, str]) -> None:
        per_minute = caller.requests_per_minute or self._requests_per_minute
        if per_minute is None or caller.is_server:
            return
        allowance = self._meter.take(caller.key_id or "first", per_minute)
        answer_headers.update(allowance.headers())
        if allowance.retry_s > 0:
            raise RateLimited(
                f"Rate limit reached: this key may ask {per_minute} times a minute. Please try again in "
                f"{allowance.retry_s:.1f} seconds.",
                retry_after_s=max(1, round(allowance.retry_s + 0.5)),
            )


def _key_of(headers: Headers) -> str:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" else headers.get("api-key", "")


def _mask(key: str) -> str:
    return f"{key[:5]}***{key[-2:]}" if len(key) > 12 else "***"
