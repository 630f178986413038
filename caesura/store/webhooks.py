"""Webhook endpoints, and what is to be delivered to them. A delivery is written by the transaction that it tells of."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from caesura.errors import InvalidRequest, NotFound
from caesura.ids import new_id
from caesura.jobs import FIRST_PROJECT
from caesura.store import tables
from caesura.store.database import Database
from caesura.store.rows import now, within

_ENDPOINTS, _DELIVERIES = tables.webhook_endpoints.c, tables.webhook_deliveries.c
MAX_ENDPOINTS = 32


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    id: str
    created_at: int
    name: str
    url: str
    event_types: list[str]
    #: It signs, so it is kept as it is.
    secret: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event on its way to an endpoint."""

    seq: int
    event_id: str
    created_at: int
    #: JSON, the same at every try.
    body: str
    #: Those before this one.
    num_tries: int
    url: str
    secret: str


class Webhooks:
    """Contract: an endpoint is told of what happens from the moment its row exists until that is deleted. Those of
    other projects than `project` do not exist here, nor do those of the settings.
    """

    def __init__(self, database: Database, project: str | None = None) -> None:
        self._database = database
        self._project = project
        self._own = within(tables.webhook_endpoints, project)

    def create(self, name: str, url: str, event_types: Sequence[str]) -> WebhookEndpoint:
        """Raises InvalidRequest where there are as many as there may be."""
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        endpoint = WebhookEndpoint(new_id("we_"), now(), name, url, list(event_types), secret)
        with self._database.write() as connection:
            self._database.alone(connection, "webhook endpoints")
            if len(connection.execute(select(_ENDPOINTS.seq).where(self._own)).all()) >= MAX_ENDPOINTS:
                raise InvalidRequest(
                    f"The project has {MAX_ENDPOINTS} webhook endpoints, and can have no more. Delete one first."
                )
            _insert(connection, endpoint, self._project or FIRST_PROJECT)
        return endpoint

    def list(self) -> list[WebhookEndpoint]:
        """Newest first."""
        query = select(tables.webhook_endpoints).where(self._own).order_by(_ENDPOINTS.seq.desc())
        with self._database.read() as connection:
            return [_to_endpoint(row) for row in connection.execute(query).mappings()]

    def get(self, endpoint_id: str) -> WebhookEndpoint:
        """Raises NotFound."""
        with self._database.read() as connection:
            return self._get(connection, endpoint_id)

    def update(self, endpoint_id: str, **changes: Any) -> WebhookEndpoint:
        """Raises NotFound. What is on its way goes to the new URL."""
        statement = update(tables.webhook_endpoints).where(_ENDPOINTS.id == endpoint_id, self._own)
        with self._database.write() as connection:
            if changes:
                connection.execute(statement.values(changes))
            return self._get(connection, endpoint_id)

    def delete(self, endpoint_id: str) -> None:
        """Raises NotFound. What is on its way is not sent any more."""
        statement = delete(tables.webhook_endpoints).where(_ENDPOINTS.id == endpoint_id, self._own)
        with self._database.write() as connection:
            if not connection.execute(statement).rowcount:
                raise _not_found(endpoint_id)

    def configure(self, endpoints: Sequence[WebhookEndpoint]) -> None:
        """Have these, the settings', stand beside those of projects: they are told of every project's events."""
        every_project = _ENDPOINTS.project.is_(None)
        query = select(tables.webhook_endpoints).where(every_project)
        with self._database.write() as connection:
            self._database.alone(connection, "webhook endpoints")
            present = {row["id"]: _to_endpoint(row) for row in connection.execute(query).mappings()}
            wanted = {endpoint.id: endpoint for endpoint in endpoints}
            surplus = [known for known in present if known not in wanted]
            connection.execute(delete(tables.webhook_endpoints).where(_ENDPOINTS.id.in_(surplus)))
            for endpoint in wanted.values():
                if endpoint.id not in present:
                    _insert(connection, endpoint, None)
                else:
                    values = {"event_types": endpoint.event_types, "secret": endpoint.secret, "url": endpoint.url}
                    connection.execute(
                        update(tables.webhook_endpoints).where(_ENDPOINTS.id == endpoint.id).values(values)
                    )

    def claim(self, at: float, hold_s: float, limit: int) -> list[Delivery]:
        """Up to `limit` deliveries that are due at the Unix time `at`, the longest due first. Nobody else is given them
        for `hold_s`; who has not finished or put them off by then is believed dead.
        """
        due = _DELIVERIES.due_at <= at
        first = select(_DELIVERIES.seq).where(due).order_by(_DELIVERIES.due_at).limit(limit)
        with self._database.read() as connection:
            if connection.execute(first.limit(1)).first() is None:
                return []  # the usual case takes no write transaction
        with self._database.write() as connection:
            seqs = list(connection.execute(first.with_for_update(skip_locked=True)).scalars())
            connection.execute(
                update(tables.webhook_deliveries).where(_DELIVERIES.seq.in_(seqs)).values(due_at=at + hold_s)
            )
            query = (
                select(tables.webhook_deliveries, _ENDPOINTS.url, _ENDPOINTS.secret)
                .join(tables.webhook_endpoints, _ENDPOINTS.id == _DELIVERIES.endpoint)
                .where(_DELIVERIES.seq.in_(seqs))
                .order_by(_DELIVERIES.seq)
            )
            rows = connection.execute(query).mappings().all()
        return [Delivery(**{name: row[name] for name in Delivery.__dataclass_fields__}) for row in rows]

    def settle(self, delivery: Delivery, retry_at: float | None) -> None:
        """The delivery was tried; None: it has come, or is given up."""
        is_it = _DELIVERIES.seq == delivery.seq
        with self._database.write() as connection:
            if retry_at is None:
                connection.execute(delete(tables.webhook_deliveries).where(is_it))
            else:
                values = {"due_at": retry_at, "num_tries": delivery.num_tries + 1}
                connection.execute(update(tables.webhook_deliveries).where(is_it).values(values))

    def _get(self, connection: Connection, endpoint_id: str) -> WebhookEndpoint:
        query = select(tables.webhook_endpoints).where(_ENDPOINTS.id == endpoint_id, self._own)
        row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise _not_found(endpoint_id)
        return _to_endpoint(row)


def _insert(connection: Connection, endpoint: WebhookEndpoint, project: str | None) -> None:
    values = {name: getattr(endpoint, name) for name in WebhookEndpoint.__dataclass_fields__}
    connection.execute(insert(tables.webhook_endpoints).values(**values, project=project))


def _to_endpoint(row: RowMapping) -> WebhookEndpoint:
    return WebhookEndpoint(**{name: row[name] for name in WebhookEndpoint.__dataclass_fields__})


def _not_found(endpoint_id: str) -> NotFound:
    return NotFound(f"No such webhook endpoint: '{endpoint_id}'", param="id")
