"""Finished responses, for whoever reads them again or goes on from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select

from caesura.errors import NotFound
from caesura.jobs import FIRST_PROJECT
from caesura.store import tables
from caesura.store.database import Database
from caesura.store.rows import within

_RESPONSES = tables.responses.c


@dataclass(frozen=True, slots=True)
class StoredResponse:
    #: As it was answered.
    response: dict[str, Any]
    #: What it answers, in its own order; of the response before it, only `previous_response_id` speaks.
    input_items: list[dict[str, Any]]


class Responses:
    """Contract: a response is there whole, with its input, or not at all."""

    def __init__(self, database: Database, project: str | None = None) -> None:
        self._database = database
        self._project = project
        self._own = within(tables.responses, project)

    def create(self, stored: StoredResponse) -> None:
        values = {
            "id": stored.response["id"],
            "project": self._project or FIRST_PROJECT,
            "created_at": stored.response["created_at"],
            "previous_response_id": stored.response["previous_response_id"],
            "response": stored.response,
            "input_items": stored.input_items,
        }
        with self._database.write() as connection:
            connection.execute(insert(tables.responses).values(values))

    def get(self, response_id: str) -> StoredResponse:
        """Raises NotFound."""
        return self.chain(response_id, limit=1)[0]

    def chain(self, response_id: str, limit: int | None = None) -> list[StoredResponse]:
        """The response and those before it (`limit` in all), the oldest first. Raises NotFound, which names the
        missing one.
        """
        chain: list[StoredResponse] = []
        wanted: str | None = response_id
        with self._database.read() as connection:
            while wanted is not None and len(chain) != limit:
                query = select(tables.responses).where(_RESPONSES.id == wanted, self._own)
                row = connection.execute(query).mappings().one_or_none()
                if row is None:
                    raise NotFound(f"Response with id '{wanted}' not found.", param="id")
                chain.append(StoredResponse(row["response"], row["input_items"]))
                wanted = row["previous_response_id"]
        return chain[::-1]

    def delete(self, response_id: str) -> None:
        """Raises NotFound. Responses that went on from it can be read, but no longer gone on from."""
        with self._database.write() as connection:
            is_it = (_RESPONSES.id == response_id, self._own)
            deleted = connection.execute(delete(tables.responses).where(*is_it)).rowcount
        if not deleted:
            raise NotFound(f"Response with id '{response_id}' not found.", param="id")

    def expire(self, before: float) -> None:
        """Delete all responses that were created before the Unix time `before`."""
        expired = _RESPONSES.created_at < before
        with self._database.read() as connection:
            if connection.execute(select(_RESPONSES.seq).where(expired).limit(1)).first() is None:
                return  # the usual case takes no write transaction
        with self._database.write() as connection:
            connection.execute(delete(tables.responses).where(expired))
