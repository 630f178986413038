"""Delivers webhooks: signed as Standard Webhooks says (https://github.com/standard-webhooks/standard-webhooks), until
they have come or three days have passed.

It holds no truth: what is due stands in the database, so it may be killed and started again at any time, and several
may run at once. What was sent and not noted before a kill is sent again, under the same id.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence

import httpx

from caesura.errors import SettingsInvalid
from caesura.graders.calls import open_client
from caesura.graders.outbound import WEBHOOKS, OutboundRefused, resolve
from caesura.settings import WebhookSettings
from caesura.store.webhooks import Delivery, WebhookEndpoint, Webhooks

logger = logging.getLogger(__name__)

#: The longest time between two looks at the database.
TICK_S = 1.0
#: Of one try, from the name's resolution to the head of the answer.
TIMEOUT_S = 10.0
#: A delivery in hand is nobody else's for so long.
HOLD_S = 60.0
NUM_AT_ONCE = 16
#: The wait before the second try; it doubles from try to try up to the second number, and a random half is left out.
MIN_BACKOFF_S, MAX_BACKOFF_S = 5.0, 6 * 3600.0
GIVEN_UP_S = 72 * 3600.0
USER_AGENT = "OpenAI/1.0 (+https://platform.openai.com/docs/webhooks)"


def sign(secret: str, event_id: str, timestamp: int, body: str) -> str:
    """The header `webhook-signature`. Of a secret behind `whsec_` the key is what it spells in base64."""
    key = base64.b64decode(secret.removeprefix("whsec_")) if secret.startswith("whsec_") else secret.encode()
    digest = hmac.new(key, f"{event_id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def read_webhooks(settings: Sequence[WebhookSettings]) -> list[WebhookEndpoint]:
    """The endpoints of the settings. Raises SettingsInvalid where a secret is missing or cannot sign."""
    return [_read_webhook(webhook) for webhook in settings]


def _read_webhook(settings: WebhookSettings) -> WebhookEndpoint:
    secret = os.environ.get(settings.secret_env, "")
    try:
        sign(secret, "", 0, "")
    except ValueError:
        secret = ""
    if not secret:
        raise SettingsInvalid(
            f"The secret of the webhook '{settings.url}' is looked for in the environment variable "
            f"{settings.secret_env}: set it to 'whsec_' and random bytes in base64."
        )
    name = hashlib.sha256(settings.url.encode()).hexdigest()[:24]
    return WebhookEndpoint(
        f"we_{name}", int(time.time()), settings.url, settings.url, list(settings.event_types), secret
    )


class Deliverer:
    """A thread. `allowed` is the setting `allowed_webhook_hosts`; `clock` gives Unix seconds."""

    def __init__(
        self,
        webhooks: Webhooks,
        allowed: Sequence[str],
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._webhooks = webhooks
        self._allowed = allowed
        self._clock = clock
        self._jitter = jitter
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deliverer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the tries in hand."""
        self._stopping.set()
        self._thread.join()

    def tick(self) -> int:
        """Try everything that is due now; how many tries that were."""
        return asyncio.run(self._deliver_due())

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                num_tried = self.tick()
            except Exception:  # the thread must outlive whatever one tick meets; the next tick meets it again
                logger.exception("webhooks could not be delivered; trying again")
                num_tried = 0
            if num_tried < NUM_AT_ONCE:
                self._stopping.wait(TICK_S)

    async def _deliver_due(self) -> int:
        due = await asyncio.to_thread(self._webhooks.claim, self._clock(), HOLD_S, NUM_AT_ONCE)
        if due:
            async with open_client(max_idle_connections=0) as client:
                await asyncio.gather(*(self._deliver(client, delivery) for delivery in due))
        return len(due)

    async def _deliver(self, client: httpx.AsyncClient, delivery: Delivery) -> None:
        fault = await self._try(client, delivery)
        retry_at = None
        if fault is not None:
            now = self._clock()
            backoff_s = min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2.0 ** min(delivery.num_tries, 20))
            retry_at = now + backoff_s * (1 + self._jitter()) / 2
            if retry_at > delivery.created_at + GIVEN_UP_S:
                retry_at = None
            told = "given up" if retry_at is None else f"trying again in {retry_at - now:.0f} s"
            logger.warning("the webhook %s was not delivered: %s; %s", delivery.event_id, fault, told)
        await asyncio.to_thread(self._webhooks.settle, delivery, retry_at)

    async def _try(self, client: httpx.AsyncClient, delivery: Delivery) -> str | None:
        """Why it has not come; None: it has."""
        timestamp = int(self._clock())
        headers = {
            "content-type": "application/json",
            "user-agent": USER_AGENT,
            "webhook-id": delivery.event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(delivery.secret, delivery.event_id, timestamp, delivery.body),
        }
        try:
            async with asyncio.timeout(TIMEOUT_S):
                target = await resolve(delivery.url, self._allowed, WEBHOOKS)
                request = target.build_request(client, "POST", headers, delivery.body.encode())
                response = await client.send(request, stream=True)
                await response.aclose()
        except TimeoutError:
            return f"no answer within {TIMEOUT_S:.0f} s"
        except OutboundRefused as refused:
            return str(refused)
        except (httpx.TransportError, OSError) as error:
            return f"no connection ({type(error).__name__})"
        return None if response.is_success else f"status {response.status_code}"
