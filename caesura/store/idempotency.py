"""What was answered to requests with an `Idempotency-Key`, so that one that is sent again is answered the same."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select, update
from sqlalchemy.sql.elements import ColumnElement

from caesura.jobs import FIRST_PROJECT
from caesura.store import tables
from caesura.store.database import Database, also_write
from caesura.store.rows import now

#: A key is kept for so long: a day.
KEY_LIFE_S = 86_400
_KEYS = tables.idempotency_keys.c


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class KnownKey:
    """What there is of a key that came before."""

    #: Method and URL.
    request: str
    #: Of the request's body; None as long as there is no answer.
    fingerprint: str | None
    #: None: the first request was carried out, and ended without an answer that could be kept.
    answer: KeptAnswer | None


class IdempotencyKeys:
    """Contract: a key is claimed before its request is carried out, and every write of that request says in its own
    transaction that it was (`also_write`). So after a crash it is known whether anything was made.

    A key means nothing in another project than `project`. That no two requests with one key are at work at the same
    time is for the caller to see to.
    """

    def __init__(self, database: Database, project: str | None = None) -> None:
        self._database = database
        self._project = project or FIRST_PROJECT

    def claim(self, key: str, request: str) -> KnownKey | None:
        """Take the key for `request` (method and URL); None where it is free, else what is known of it.

        A key whose request wrote nothing and was not answered is free again.
        """
        values = {"project": self._project, "key": key, "request": request, "created_at": now(), "written": False}
        old = _KEYS.created_at < time.time() - KEY_LIFE_S
        unwritten = _KEYS.status.is_(None) & _KEYS.written.is_(False)
        with self._database.write() as connection:
            self._database.alone(connection, f"idempotency key {self._project} {key}")
            connection.execute(delete(tables.idempotency_keys).where(self._is(key), old | unwritten))
            known = connection.execute(select(tables.idempotency_keys).where(self._is(key))).mappings().one_or_none()
            if known is None:
                connection.execute(insert(tables.idempotency_keys).values(values))
        return None if known is None else _to_known(known)

    def marking(self, key: str) -> AbstractContextManager[None]:
        """A context in which every write says that the key's request has written something."""
        statement = update(tables.idempotency_keys).where(self._is(key)).values(written=True)

        def mark(connection: Connection) -> None:
            connection.execute(statement)

        return also_write(mark)

    def keep(self, key: str, fingerprint: str, answer: KeptAnswer) -> None:
        """Answer the key by `answer` from now on."""
        values: dict[str, Any] = {
            "fingerprint": fingerprint,
            "status": answer.status,
            "headers": answer.headers,
            "body": answer.body,
        }
        with self._database.write() as connection:
            connection.execute(update(tables.idempotency_keys).where(self._is(key)).values(values))

    def release(self, key: str, *, even_written: bool = False) -> None:
        """Make the key free; one whose request has written something stays taken, but for `even_written`."""
        statement = delete(tables.idempotency_keys).where(self._is(key), _KEYS.status.is_(None))
        if not even_written:
            statement = statement.where(_KEYS.written.is_(False))
        with self._database.write() as connection:
            connection.execute(statement)

    def expire(self) -> None:
        """Delete the keys of all projects that are older than KEY_LIFE_S."""
        old = _KEYS.created_at < time.time() - KEY_LIFE_S
        with self._database.read() as connection:
            if connection.execute(select(_KEYS.seq).where(old).limit(1)).first() is None:
                return  # the usual case takes no write transaction
        with self._database.write() as connection:
            connection.execute(delete(tables.idempotency_keys).where(old))

    def _is(self, key: str) -> ColumnElement[bool]:
        return (_KEYS.project == self._project) & (_KEYS.key == key)


def _to_known(row: RowMapping) -> KnownKey:
    answer = None
    if row["status"] is not None:
        answer = KeptAnswer(row["status"], [(name, value) for name, value in row["headers"]], row["body"])
    return KnownKey(row["request"], row["fingerprint"], answer)
