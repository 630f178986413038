"""What is counted of all jobs, by whichever server or worker: in the transaction that it tells of, so that nothing is
lost by a crash, and nothing counted twice by a step that is done again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, select, text
from sqlalchemy.sql.functions import count

from caesura.jobs import Status
from caesura.store import tables
from caesura.store.database import Database


class Measure(StrEnum):
    """What is measured; behind it, what its label holds (`Key.label`)."""

    #: Seconds of a step, without its validations. The job's method.
    STEP = "step"
    #: Seconds from a job's creation to its first start. The job's method.
    QUEUE_WAIT = "queue_wait"
    #: Seconds that a grader took for one answer. The grader's type.
    GRADE = "grade"
    #: What was wrong with a grade. The grader's type and the flag, with a slash between them.
    GRADE_ERROR = "grade_error"
    #: A worker claimed a job. The job's method.
    ATTEMPT = "attempt"
    #: A worker ended, or fell silent, before it was done. When: `starting` or `training`.
    WORKER_LOST = "worker_lost"


#: Upper bounds of the buckets of those that are seconds.
BOUNDS: dict[Measure, tuple[float, ...]] = {
    Measure.STEP: (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
    Measure.QUEUE_WAIT: (1, 2, 5, 15, 60, 300, 900, 3600, 14_400, 86_400),
    Measure.GRADE: (0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1, 2.5, 10, 30, 120),
}
_UPSERT = text(
    "INSERT INTO measures (name, label, bucket, count, total) VALUES (:name, :label, :bucket, :count, :total) "
    "ON CONFLICT (name, label, bucket) "
    "DO UPDATE SET count = measures.count + excluded.count, total = measures.total + excluded.total"
)


@dataclass(frozen=True, slots=True, order=True)
class Key:
    name: Measure
    label: str
    #: Of seconds: the index into BOUNDS, one more for what is above them all. Of what is only counted: 0.
    bucket: int = 0


@dataclass(frozen=True, slots=True)
class Tally:
    count: int
    #: Seconds; of what is only counted 0.
    total: float


@dataclass(frozen=True, slots=True)
class Measured:
    """At one moment."""

    #: Of every status; those that were deleted count where they ended.
    jobs: dict[Status, int]
    tallies: dict[Key, Tally]


class Measures:
    """Contract: what is read is of one moment."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self) -> Measured:
        status, measures = tables.jobs.c.status, tables.measures.c
        in_order = (measures.name, measures.label, measures.bucket)
        with self._database.read() as connection:
            jobs = connection.execute(select(status, count()).group_by(status)).all()
            rows = connection.execute(select(tables.measures).order_by(*in_order)).mappings().all()
        tallies = {
            Key(Measure(row["name"]), row["label"], row["bucket"]): Tally(row["count"], row["total"]) for row in rows
        }
        return Measured(dict.fromkeys(Status, 0) | {Status(name): number for name, number in jobs}, tallies)


def observe(connection: Connection, name: Measure, label: str, seconds: Iterable[float]) -> None:
    """Add each of `seconds`, in this transaction."""
    bounds = BOUNDS[name]
    tallies: dict[Key, Tally] = {}
    for value in seconds:
        key = Key(name, label, bisect_left(bounds, value))
        before = tallies.get(key, Tally(0, 0.0))
        tallies[key] = Tally(before.count + 1, before.total + value)
    _add(connection, tallies)


def tally(connection: Connection, name: Measure, labels: Iterable[str]) -> None:
    """Count each of `labels`, in this transaction."""
    _add(connection, {Key(name, label): Tally(number, 0.0) for label, number in Counter(labels).items()})


def _add(connection: Connection, tallies: dict[Key, Tally]) -> None:
    # In order: two transactions that add to the same rows take their locks in the same one.
    rows = [
        {"name": key.name, "label": key.label, "bucket": key.bucket, "count": found.count, "total": found.total}
        for key, found in sorted(tallies.items())
    ]
    if rows:
        connection.execute(_UPSERT, rows)
