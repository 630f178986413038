"""Between rows and values, and the two writes that the other modules here are made of: a move and its event."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, FromClause, RowMapping, insert, select, true, update
from sqlalchemy.sql.elements import ColumnElement

from caesura.ids import new_id
from caesura.jobs import (
    ACTIVE,
    ANNOUNCED,
    FINAL,
    Artifact,
    Event,
    File,
    Job,
    JobError,
    Level,
    Model,
    Reason,
    Status,
    TrainingState,
    sources,
)
from caesura.store import tables
from caesura.store.announcing import announce

_JOB_FIELDS = Job.__dataclass_fields__
_UPDATE = update(tables.jobs).returning(*tables.jobs.c)
_INSERT_EVENT = insert(tables.events)
_NO_LEASE: dict[str, Any] = dict.fromkeys(("worker", "lease_token", "lease_expires_at", "estimated_finish"))


def now() -> int:
    """Unix seconds."""
    return int(time.time())


def within(table: FromClause, project: str | None) -> ColumnElement[bool]:
    """The rows of `table` that are the project's; of every project where it is None."""
    return true() if project is None else table.c.project == project


@dataclass(frozen=True, slots=True)
class Telling:
    """An event to be written; one with a `key` is told once for its job, however often it is written."""

    message: str
    level: Level = Level.INFO
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    type: str = "message"
    key: str | None = None


def hold_job(connection: Connection, job_id: str) -> None:
    """Have the job's row change by nobody else until this transaction ends: for what takes more than one statement."""
    connection.execute(select(tables.jobs.c.seq).where(tables.jobs.c.id == job_id).with_for_update())


def move(
    connection: Connection, job_id: str, to: Status, *conditions: ColumnElement[bool], **values: Any
) -> Job | None:
    """Move the job to the status `to`, in one statement, where TRANSITIONS and all `conditions` allow it.

    Returns the job as it is now, None when nothing was moved. A job that leaves the active statuses loses its lease;
    webhooks are told of those that they are told of.
    """
    if to not in ACTIVE:
        values = _NO_LEASE | values
    if to in FINAL:
        values["finished_at"] = now()
    is_allowed = (tables.jobs.c.id == job_id, tables.jobs.c.status.in_(sources(to)), *conditions)
    statement = _UPDATE.where(*is_allowed).values(status=to, **values)
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        return None
    if to in ANNOUNCED:
        announce(connection, job_id, row["project"], ANNOUNCED[to])
    return to_job(row)


def move_many(
    connection: Connection, job_ids: Collection[str], to: Status, *conditions: ColumnElement[bool], **values: Any
) -> list[str]:
    """`move` for waiting jobs all at once, where each is allowed; returns the ids of those that were moved."""
    assert to not in ACTIVE | FINAL, to
    is_allowed = (tables.jobs.c.id.in_(job_ids), tables.jobs.c.status.in_(sources(to)), *conditions)
    statement = update(tables.jobs).where(*is_allowed).values(status=to, **_NO_LEASE, **values)
    return list(connection.execute(statement.returning(tables.jobs.c.id)).scalars())


def tell_each(connection: Connection, job_ids: Collection[str], telling: Telling) -> None:
    """`tell` the same of all these jobs. What may be told only once is not for this."""
    assert telling.key is None
    if job_ids:
        connection.execute(_INSERT_EVENT, [_to_row(telling, job_id) for job_id in job_ids])


def tell(connection: Connection, job_id: str, *tellings: Telling) -> set[str]:
    """Write events of a job whose row this transaction has already changed (and so locked).

    Returns the keys of those that were not told before.
    """
    keys = [telling.key for telling in tellings if telling.key is not None]
    told: set[str | None] = set()
    if keys:
        query = select(tables.events.c.key).where(tables.events.c.job_id == job_id, tables.events.c.key.in_(keys))
        told = set(connection.execute(query).scalars())
    rows = [_to_row(telling, job_id) for telling in tellings if telling.key is None or telling.key not in told]
    if rows:
        connection.execute(_INSERT_EVENT, rows)
    return {row["key"] for row in rows if row["key"] is not None}


def _to_row(telling: Telling, job_id: str) -> dict[str, Any]:
    told = {name: getattr(telling, name) for name in Telling.__slots__}
    return {"id": new_id("ftevent-"), "job_id": job_id, "created_at": now(), **told}


def to_artifact(value: dict[str, Any]) -> Artifact:
    return Artifact(value["prefix"], {name: (size, sha256) for name, (size, sha256) in value["files"].items()})


def to_file(row: Mapping[Any, Any]) -> File:
    return File(**{name: row[name] for name in File.__dataclass_fields__})


def to_event(row: RowMapping) -> Event:
    return Event(**{name: row[name] for name in Event.__dataclass_fields__})


def to_job(row: Mapping[Any, Any]) -> Job:
    values: dict[str, Any] = {name: row[name] for name in _JOB_FIELDS}
    values["status"] = Status(row["status"])
    values["error"] = None if row["error"] is None else JobError(**row["error"])
    values["start_adapter"] = None if row["start_adapter"] is None else to_artifact(row["start_adapter"])
    return Job(**values)


def to_model(row: RowMapping) -> Model:
    values: dict[str, Any] = {name: row[name] for name in Model.__dataclass_fields__}
    values["reason"] = Reason(row["reason"])
    values["adapter"] = to_artifact(row["adapter"])
    return Model(**values)


def to_state(row: RowMapping) -> TrainingState:
    return TrainingState(row["step"], to_artifact(row["adapter"]), to_artifact(row["optimizer"]))
