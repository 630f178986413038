"""What jobs' integrations are still to be sent: how far each has come, and which process has it in hand.

A shipment stands here from its job's making until the job has ended and all has come.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from caesura.ids import new_token
from caesura.jobs import FINAL, Job
from caesura.store import tables
from caesura.store.database import Database
from caesura.store.rows import Telling, hold_job, tell

_SHIPMENTS, _JOBS = tables.shipments.c, tables.jobs.c


@dataclass(frozen=True, slots=True)
class Shipment:
    """A job's steps on their way to one of its integrations."""

    seq: int
    job_id: str
    #: Which of the job's integrations it is.
    number: int
    #: That integration's type.
    type: str
    #: The last step that has come.
    step: int
    #: How often it was tried since something came.
    num_tries: int
    #: Of whoever has it in hand.
    holder: str | None


class Shipments:
    """Contract: a shipment is in at most one hand. What is written by one that has lost it changes nothing, and is
    answered False.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, at: float, hold_s: float, types: Collection[str], limit: int) -> list[Shipment]:
        """Up to `limit` shipments to integrations of these types that have something to send and may be tried at the
        Unix time `at`, the longest due first. Nobody else is given them for `hold_s`, unless that is prolonged.
        """
        has_news = (_JOBS.step > _SHIPMENTS.step) | _JOBS.status.in_(FINAL)
        query = (
            select(_SHIPMENTS.seq)
            .join(tables.jobs, _JOBS.id == _SHIPMENTS.job_id)
            .where(_SHIPMENTS.due_at <= at, _SHIPMENTS.type.in_(types), has_news)
            .order_by(_SHIPMENTS.due_at, _SHIPMENTS.seq)
            .limit(limit)
        )
        with self._database.read() as connection:
            if limit <= 0 or connection.execute(query.limit(1)).first() is None:
                return []  # the usual case takes no write transaction
        with self._database.write() as connection:
            seqs = connection.execute(query.with_for_update(skip_locked=True, of=tables.shipments)).scalars().all()
            return [self._take(connection, seq, at + hold_s) for seq in seqs]

    def _take(self, connection: Connection, seq: int, until: float) -> Shipment:
        statement = update(tables.shipments).where(_SHIPMENTS.seq == seq).values(holder=new_token(), due_at=until)
        row = connection.execute(statement.returning(*tables.shipments.c)).mappings().one()
        return Shipment(**{name: row[name] for name in Shipment.__dataclass_fields__})

    def keep(self, shipment: Shipment, step: int, until: float) -> bool:
        """All up to `step` has come; nobody else is given the shipment before the Unix time `until`."""
        came = {"num_tries": 0} if step > shipment.step else {}
        return self._write(shipment, step=step, due_at=until, **came)

    def rest(self, shipment: Shipment) -> bool:
        """All that there is has come: it is due again as soon as there is more."""
        return self._write(shipment, due_at=0.0, num_tries=0, holder=None)

    def put_off(self, shipment: Shipment, until: float, warning: Telling) -> bool:
        """It could not be sent, and is tried again at `until`. The job is told so."""
        with self._database.write() as connection:
            hold_job(connection, shipment.job_id)
            values = {"due_at": until, "num_tries": shipment.num_tries + 1, "holder": None}
            held = connection.execute(update(tables.shipments).where(_is_held(shipment)).values(values)).rowcount > 0
            if held:
                tell(connection, shipment.job_id, warning)
        return held

    def end(self, shipment: Shipment, warning: Telling | None = None) -> bool:
        """It has come as a whole, or, with a warning for the job, is given up."""
        with self._database.write() as connection:
            hold_job(connection, shipment.job_id)
            held = connection.execute(delete(tables.shipments).where(_is_held(shipment))).rowcount > 0
            if held and warning is not None:
                tell(connection, shipment.job_id, warning)
        return held

    def _write(self, shipment: Shipment, **values: Any) -> bool:
        with self._database.write() as connection:
            return connection.execute(update(tables.shipments).where(_is_held(shipment)).values(values)).rowcount > 0


def _is_held(shipment: Shipment) -> ColumnElement[bool]:
    return (_SHIPMENTS.seq == shipment.seq) & (_SHIPMENTS.holder == shipment.holder)


def add_shipments(connection: Connection, job: Job) -> None:
    """One for each integration of the new job."""
    rows = [
        {"job_id": job.id, "number": number, "type": item["type"], "step": 0, "num_tries": 0, "due_at": 0.0}
        for number, item in enumerate(job.integrations)
    ]
    if rows:
        connection.execute(insert(tables.shipments), rows)
