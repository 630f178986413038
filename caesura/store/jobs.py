"""What the API asks of jobs: create, read, list, pause, resume, cancel; and what validation reports."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Select, bindparam, insert, select, update
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import count

from caesura.errors import InvalidJobState, InvalidRequest, NotFound
from caesura.jobs import ACTIVE, FINAL, RESUMED, Event, File, Job, JobError, Level, Status, Told, TrainingState
from caesura.store import tables
from caesura.store.announcing import announce
from caesura.store.database import Database
from caesura.store.models import drop_states, hold_model
from caesura.store.reports import attach_report
from caesura.store.rows import (
    Telling,
    hold_job,
    move,
    move_many,
    now,
    tell,
    tell_each,
    to_event,
    to_job,
    to_state,
    within,
)
from caesura.store.shipments import add_shipments

_JOBS = tables.jobs.c
#: The query that is made most often: put together once, its parameters come with each execution.
_JOB = select(tables.jobs).where(_JOBS.id == bindparam("job_id"), _JOBS.deleted_at.is_(None))
_INSERT = insert(tables.jobs).returning(_JOBS.seq)
_JOB_OF_PROJECT = _JOB.where(_JOBS.project == bindparam("of_project"))


class Jobs:
    """Contract: every method is one transaction; a status never changes without its event.

    The moves raise NotFound for an unknown job and InvalidJobState, naming the present status, for an illegal move.
    Jobs of other projects than `project` are unknown; None: no project's are.
    """

    def __init__(self, database: Database, project: str | None = None) -> None:
        self._database = database
        self._project = project
        self._known = within(tables.jobs, project)
        self._own = self._known & _JOBS.deleted_at.is_(None)
        self._one = database.prepare(_JOB if project is None else _JOB_OF_PROJECT)

    def create(self, job: Job, *notes: Telling) -> None:
        """Store a new job with its first events, `notes` after OpenAI's own two.

        Raises NotFound when the tuned model that it starts from does not exist any more.
        """
        created = Telling(Told.CREATED.format(id=job.id))
        text = Told.VALIDATING if job.validation_file is None else Told.VALIDATING_BOTH
        validating = Telling(text.format(training=job.training_file, validation=job.validation_file))
        with self._database.write() as connection:
            if job.start_model is not None:
                hold_model(connection, job.start_model)
            seq = connection.execute(_INSERT, _values(job)).scalar_one()
            pairs = (job.metadata or {}).items()
            rows = [{"job_seq": seq, "key": key, "value": value, "project": job.project} for key, value in pairs]
            if rows:
                connection.execute(insert(tables.job_metadata), rows)
            add_shipments(connection, job)
            tell(connection, job.id, created, *notes, validating)

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        row = self._one(job_id=job_id, of_project=self._project or "")
        if row is None:
            raise _unknown(job_id)
        return to_job(row)

    def list(
        self,
        *,
        after: str | None,
        limit: int,
        metadata: dict[str, str] | None,
        without_metadata: bool = False,
        statuses: Collection[Status] = (),
        method: str | None = None,
    ) -> tuple[list[Job], bool]:
        """Jobs behind the cursor, newest first, and whether more lie behind the page.

        `metadata`: only jobs that have all these pairs; `statuses`: only those in one of them, where there are any.
        Raises InvalidRequest for a cursor that never existed.
        """
        query, seq = select(tables.jobs).where(self._own), _JOBS.seq
        for pair in (metadata or {}).items():
            query, seq = self._having(query, *pair)
        query = query.order_by(seq.desc()).limit(limit + 1)
        if without_metadata:
            query = query.where(_JOBS.metadata.is_(None))
        if statuses:
            query = query.where(_JOBS.status.in_(statuses))
        if method is not None:
            query = query.where(_JOBS.method["type"].as_string() == method)
        with self._database.read() as connection:
            if after is not None:
                cursor = connection.execute(
                    select(_JOBS.seq).where(_JOBS.id == after, self._known)
                ).scalar_one_or_none()
                if cursor is None:
                    raise InvalidRequest(f"Invalid 'after': there is no job '{after}'.", param="after")
                query = query.where(seq < cursor)
            rows = connection.execute(query).mappings().all()
        return [to_job(row) for row in rows[:limit]], len(rows) > limit

    def _having(self, query: Select[Any], key: str, value: str) -> tuple[Select[Any], ColumnElement[int]]:
        """The query of those with this pair, and the column to order it by, which the pair's index has in order."""
        pairs = tables.job_metadata.alias()
        is_it = (pairs.c.key == key, pairs.c.value == value, within(pairs, self._project))
        return query.join(pairs, pairs.c.job_seq == _JOBS.seq).where(*is_it), pairs.c.job_seq

    def list_events(self, job_id: str, *, after: str | None, limit: int) -> tuple[list[Event], bool]:
        """Events behind the cursor, newest first. Raises NotFound, InvalidRequest for an unknown cursor."""
        events = tables.events.c
        query = select(tables.events).where(events.job_id == job_id).order_by(events.seq.desc()).limit(limit + 1)
        with self._database.read() as connection:
            get_job(connection, job_id, self._project)
            if after is not None:
                query = query.where(events.seq < _seq_of_event(connection, job_id, after, "after"))
            rows = connection.execute(query).mappings().all()
        return [to_event(row) for row in rows[:limit]], len(rows) > limit

    def follow_events(self, job_id: str, *, behind: str | None, limit: int) -> tuple[list[Event], bool]:
        """The events told after the one with the id `behind` (None: all), oldest first; and whether they are the last
        that the job will ever tell. Raises NotFound, InvalidRequest for an unknown `behind`.
        """
        events = tables.events.c
        query = select(tables.events).where(events.job_id == job_id).order_by(events.seq).limit(limit + 1)
        with self._database.read() as connection:
            # The status before the events: the last of them is written together with the final status.
            has_ended = get_job(connection, job_id, self._project).status in FINAL
            if behind is not None:
                query = query.where(events.seq > _seq_of_event(connection, job_id, behind, "last-event-id"))
            rows = connection.execute(query).mappings().all()
        return [to_event(row) for row in rows[:limit]], has_ended and len(rows) <= limit

    def list_metrics(self, job_id: str) -> list[dict[str, Any]]:
        """The data of the job's metric events, in the order of steps."""
        query = (
            select(tables.events.c.data)
            .where(tables.events.c.job_id == job_id, tables.events.c.type == "metrics")
            .order_by(tables.events.c.seq)
        )
        with self._database.read() as connection:
            rows = list(connection.execute(query).scalars())
        return sorted(rows, key=lambda data: data["step"])

    def list_steps(self, job_id: str, after: int, limit: int) -> list[tuple[int, Event]]:
        """The job's oldest metric events behind the one with the `seq` `after`, each with its own."""
        events = tables.events.c
        query = (
            select(tables.events)
            .where(events.job_id == job_id, events.seq > after, events.type == "metrics")
            .order_by(events.seq)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [(row["seq"], to_event(row)) for row in connection.execute(query).mappings()]

    def was_told(self, job_id: str, key: str) -> bool:
        """Whether the job has the event that is told only once under this key."""
        events = tables.events.c
        with self._database.read() as connection:
            query = select(events.seq).where(events.job_id == job_id, events.key == key)
            return connection.execute(query).first() is not None

    def count_told(self, job_id: str, message: str) -> int:
        """How many events of the job have this text."""
        events = tables.events.c
        with self._database.read() as connection:
            query = select(count()).where(events.job_id == job_id, events.message == message)
            return connection.execute(query).scalar_one()

    def list_states(self, job_id: str) -> list[TrainingState]:
        """The committed training states, newest first."""
        with self._database.read() as connection:
            rows = connection.execute(newest_states(job_id)).mappings().all()
        return [to_state(row) for row in rows]

    def validating(self, limit: int) -> list[Job]:
        """The oldest jobs whose files are to be validated."""
        query = _oldest((tables.jobs,), Status.VALIDATING_FILES, limit)
        with self._database.read() as connection:
            return [to_job(row) for row in connection.execute(query).mappings()]

    def reserve(self, slots: int, for_s: float, coming: Collection[str]) -> dict[str, int]:
        """Reserve the oldest jobs that wait for a worker, as many as `slots` has room for beside those that have one or
        are reserved, so that no other server starts a worker for them within `for_s`. Not the jobs that are `coming`.

        Returns each one's id → how often it was claimed so far, the oldest first.
        """
        free = _JOBS.lease_expires_at.is_(None) | ~_is_reserved(for_s)
        waiting = _oldest((_JOBS.id, _JOBS.attempt), Status.QUEUED, slots).where(free, _JOBS.id.not_in(coming))
        taken = select(count()).where(
            _JOBS.lease_expires_at.is_not(None), _JOBS.status.in_(ACTIVE) | _is_reserved(for_s)
        )
        with self._database.read() as connection:
            if connection.execute(waiting.limit(1)).first() is None or connection.execute(taken).scalar_one() >= slots:
                return {}  # the usual case takes no write transaction
        with self._database.write() as connection:
            self._database.alone(connection, "launches")
            room = max(0, slots - connection.execute(taken).scalar_one())
            reserved = {row.id: row.attempt for row in connection.execute(waiting.limit(room))}
            _reserve(connection, reserved, for_s)
        return reserved

    def keep_reserved(self, job_ids: Collection[str], for_s: float) -> None:
        """Reserve those of the jobs that still wait for `for_s` from now: their workers are on their way."""
        with self._database.write() as connection:
            _reserve(connection, job_ids, for_s)

    def still_queued(self, job_ids: Collection[str]) -> set[str]:
        """Those of the jobs that wait for a worker."""
        query = select(_JOBS.id).where(_JOBS.id.in_(job_ids), _JOBS.status == Status.QUEUED)
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())

    def base_in_demand(self) -> str | None:
        """The base of the job that is trained next, as far as one can tell: of the oldest that waits for a worker, else
        of the newest of all. None where there is no job.
        """
        queries = _oldest((_JOBS.base,), Status.QUEUED, 1), select(_JOBS.base).order_by(_JOBS.seq.desc()).limit(1)
        with self._database.read() as connection:
            found = (connection.execute(query).scalar_one_or_none() for query in queries)
            return next((base for base in found if base is not None), None)

    def still_without(self, workers: Collection[str]) -> set[str]:
        """Those of the workers that hold no job."""
        holds = _JOBS.status.in_(ACTIVE) & _JOBS.worker.in_(workers)
        query = select(_JOBS.worker).where(holds).limit(len(workers))
        with self._database.read() as connection:
            return set(workers) - set(connection.execute(query).scalars())

    def mark_valid(self, *job_ids: str) -> list[str]:
        """validating_files → queued, all in one transaction; those that have moved elsewhere meanwhile stay.

        Returns the ids of those that were moved.
        """
        is_validating = _JOBS.status == Status.VALIDATING_FILES
        with self._database.write() as connection:
            moved = move_many(connection, job_ids, Status.QUEUED, is_validating, validated_at=now())
            tell_each(connection, moved, Telling(Told.QUEUED))
        return moved

    def fail(self, job_id: str, error: JobError, *from_statuses: Status, report: File | None = None) -> bool:
        """Fail the job out of any of `from_statuses`; False when it was in none of them.

        `report`: of what is wrong with its files.
        """
        with self._database.write() as connection:
            job = move(connection, job_id, Status.FAILED, _JOBS.status.in_(from_statuses), error=asdict(error))
            if job is not None:
                tell(connection, job_id, Telling(error.message, Level.ERROR))
                if report is not None:
                    attach_report(connection, job, report)
        return job is not None

    def pause(self, job_id: str) -> Job:
        """Ask a running job to pause (its worker will), or pause a waiting one at once.

        Pausing a paused or pausing job changes nothing and is no fault.
        """
        with self._database.write() as connection:
            hold_job(connection, job_id)
            job = move(connection, job_id, Status.PAUSING, self._own)
            if job is not None:
                tell(connection, job_id, Telling(Told.PAUSING))
                return job
            waiting = _JOBS.status.in_((Status.VALIDATING_FILES, Status.QUEUED))
            job = move(connection, job_id, Status.PAUSED, waiting, self._own)
            if job is not None:
                tell(connection, job_id, Telling(Told.PAUSED))
                return job
            job = get_job(connection, job_id, self._project)
        if job.status in (Status.PAUSED, Status.PAUSING):
            return job
        raise _illegal(job, "paused", "validating_files, queued or running")

    def resume(self, job_id: str) -> Job:
        """Put a paused job back in the queue; take back a pause that is still under way."""
        with self._database.write() as connection:
            hold_job(connection, job_id)
            paused, validated = self._own & (_JOBS.status == Status.PAUSED), _JOBS.validated_at.is_not(None)
            job = (
                move(connection, job_id, Status.RUNNING, self._own, _JOBS.status == Status.PAUSING)
                or move(connection, job_id, Status.QUEUED, paused, validated, stalled_attempts=0)
                or move(connection, job_id, Status.VALIDATING_FILES, paused)
            )
            if job is None:
                raise _illegal(get_job(connection, job_id, self._project), "resumed", "paused or pausing")
            announce(connection, job_id, job.project, RESUMED)
            tell(connection, job_id, Telling(Told.RESUMED))
        return job

    def cancel(self, job_id: str) -> Job:
        """End the job now. A worker that holds it finds its lease gone. Checkpoints stay usable."""
        with self._database.write() as connection:
            job = move(connection, job_id, Status.CANCELLED, self._own)
            if job is None:
                raise _illegal(get_job(connection, job_id, self._project), "cancelled", "one that has not ended")
            drop_states(connection, job_id, keep=0)
            tell(connection, job_id, Telling(Told.CANCELLED, Level.WARN))
        return job

    def delete(self, job_id: str) -> None:
        """Take an ended job out of sight; its models and files stay. Raises NotFound and InvalidJobState."""
        statement = update(tables.jobs).where(_JOBS.id == job_id, _JOBS.status.in_(FINAL), self._own)
        with self._database.write() as connection:
            if not connection.execute(statement.values(deleted_at=now())).rowcount:
                job = get_job(connection, job_id, self._project)
                raise InvalidJobState(
                    f"Job {job.id} cannot be deleted: its status is '{job.status}', and it must have ended. Cancel it "
                    "first."
                )


def _values(job: Job) -> dict[str, Any]:
    """The columns of the job: not `asdict`, which would copy all that is inside."""
    values: dict[str, Any] = {name: getattr(job, name) for name in Job.__slots__}
    for name in ("start_adapter", "error"):
        if values[name] is not None:
            values[name] = asdict(values[name])
    return values


def _seq_of_event(connection: Connection, job_id: str, event_id: str, param: str) -> int:
    """Raises InvalidRequest, naming `param`, where the job has no such event."""
    events = tables.events.c
    query = select(events.seq).where(events.id == event_id, events.job_id == job_id)
    seq = connection.execute(query).scalar_one_or_none()
    if seq is None:
        raise InvalidRequest(f"Invalid '{param}': job {job_id} has no event '{event_id}'.", param=param)
    return seq


def _oldest(what: Sequence[Any], status: Status, limit: int) -> Select[*tuple[Any, ...]]:
    return select(*what).where(_JOBS.status == status).order_by(_JOBS.seq).limit(limit)


def _is_reserved(for_s: float) -> ColumnElement[bool]:
    """Of jobs that wait. A reservation that would hold for much longer than they do was written by another clock."""
    return (_JOBS.status == Status.QUEUED) & _JOBS.lease_expires_at.between(time.time(), time.time() + 2 * for_s)


def _reserve(connection: Connection, job_ids: Collection[str], for_s: float) -> None:
    which = (_JOBS.id.in_(job_ids), _JOBS.status == Status.QUEUED)
    if job_ids:
        connection.execute(update(tables.jobs).where(*which).values(lease_expires_at=time.time() + for_s))


def newest_states(job_id: str) -> Select[Any]:
    """The query of a job's training states, newest first."""
    # By when they came, not by step: where the newest are damaged, an attempt begins before them and saves what holds.
    states = tables.states.c
    return select(tables.states).where(states.job_id == job_id).order_by(states.seq.desc())


def get_job(connection: Connection, job_id: str, project: str | None = None) -> Job:
    """Raises NotFound, also where the job is another project's than `project`."""
    query = _JOB if project is None else _JOB_OF_PROJECT
    row = connection.execute(query, {"job_id": job_id, "of_project": project}).mappings().one_or_none()
    if row is None:
        raise _unknown(job_id)
    return to_job(row)


def _unknown(job_id: str) -> NotFound:
    return NotFound(f"Could not find fine tune: {job_id}", param="fine_tune_id", code="fine_tune_not_found")


def _illegal(job: Job, verb: str, needed: str) -> InvalidJobState:
    ended = " It has ended and stays as it is." if job.status in FINAL else ""
    return InvalidJobState(
        f"Job {job.id} cannot be {verb}: its status is '{job.status}', and it must be {needed}.{ended}"
    )
