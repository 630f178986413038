"""What the scheduler mends: jobs whose worker is gone, and the list of blobs that rows still name."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, select, true, update
from sqlalchemy.sql.elements import ColumnElement

from caesura.jobs import (
    ACTIVE,
    NUM_STALLED_ATTEMPTS,
    UNFINISHED,
    Job,
    JobError,
    Level,
    Reason,
    Status,
    Told,
)
from caesura.store import tables
from caesura.store.database import Database
from caesura.store.jobs import newest_states
from caesura.store.measures import Measure, tally
from caesura.store.models import drop_states, keep_model, start_adapters
from caesura.store.rows import Telling, move, tell, to_artifact, to_job, to_state

_JOBS = tables.jobs.c
_IS_ACTIVE = _JOBS.status.in_(ACTIVE)


#: A writer that waited longer kept others waiting too: leases could not be renewed meanwhile.
MAX_WAIT_S = 1.0
#: What a lease gets where it is not known what its worker asks for.
LEASE_S = 10.0


class Recovery:
    """Contract: a job whose worker is gone goes on from its last committed training state, or is paused at it when
    a pause was under way; after three attempts without a new step it fails, naming the cause.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def worker_gone(self, worker: str, cause: str) -> None:
        """Mend the job that `worker`, a process that has ended, still holds; nothing happens if it holds none."""
        with self._database.write() as connection:
            _mend(connection, _JOBS.worker == worker, cause)

    def expire_leases(self, lease_s: float = LEASE_S) -> None:
        """Mend every job whose lease has run out.

        Where somebody has kept the database locked so long that no worker could renew its lease, every lease runs for
        `lease_s` from now instead.
        """
        expired = _IS_ACTIVE & (_JOBS.lease_expires_at < time.time())
        with self._database.read() as connection:
            if connection.execute(select(_JOBS.id).where(expired).limit(1)).first() is None:
                return  # the usual case takes no write transaction
        began = time.monotonic()
        with self._database.write() as connection:
            if time.monotonic() - began > MAX_WAIT_S:
                _restart_leases(connection, lease_s, expired)
            else:
                _mend(connection, expired, "its lease ran out")

    def restart_leases(self, lease_s: float, longer_than_s: float | None = None) -> None:
        """Have every lease run for `lease_s` from now, or only those that would run for more than `longer_than_s`.

        For when the clock that they were written by was set: one that moved forward would end them all, and one that
        moved back would have a dead worker hold its job for hours.
        """
        too_long = true() if longer_than_s is None else _JOBS.lease_expires_at > time.time() + longer_than_s
        with self._database.read() as connection:
            if connection.execute(select(_JOBS.id).where(_IS_ACTIVE, too_long).limit(1)).first() is None:
                return
        with self._database.write() as connection:
            _restart_leases(connection, lease_s, too_long)

    def launch_failed(self, job_id: str, attempt: int, cause: str) -> None:
        """Count a worker that ended before it claimed the queued job, and give up its reservation; the third one in a
        row fails the job.

        `attempt`: how often the job was claimed when the worker was started. Where somebody has claimed it since, that
        one was counted, be it this worker or another that was faster.
        """
        queued = (_JOBS.status == Status.QUEUED) & (_JOBS.attempt == attempt)
        statement = (
            update(tables.jobs)
            .where(_JOBS.id == job_id, queued)
            .values(stalled_attempts=_JOBS.stalled_attempts + 1, lease_expires_at=None)
            .returning(_JOBS.stalled_attempts)
        )
        with self._database.write() as connection:
            stalled = connection.execute(statement).scalar_one_or_none()
            if stalled is not None:
                tally(connection, Measure.WORKER_LOST, ["starting"])
            if stalled is not None and stalled >= NUM_STALLED_ATTEMPTS:
                drop_states(connection, job_id, keep=0)
                _fail(connection, job_id, cause, queued)

    def referenced_blobs(self) -> set[str]:
        """The keys of all blobs that a row names."""
        files, states, models = tables.files.c, tables.states.c, tables.models.c
        keys: set[str] = set()
        with self._database.read() as connection:
            keys.update(connection.execute(select(files.blob).where(files.deleted_at.is_(None))).scalars())
            used = select(_JOBS.training_blob, _JOBS.validation_blob).where(_JOBS.status.in_(UNFINISHED))
            for training, validation in connection.execute(used):
                keys.update(key for key in (training, validation) if key is not None)
            # An upload's parts have rows for as long as they may be joined.
            keys.update(connection.execute(select(tables.upload_parts.c.blob)).scalars())
            artifacts: list[dict[str, Any]] = list(connection.execute(start_adapters()).scalars())
            for adapter, optimizer in connection.execute(select(states.adapter, states.optimizer)):
                artifacts += [adapter, optimizer]
            artifacts += connection.execute(select(models.adapter).where(models.deleted_at.is_(None))).scalars()
        for artifact in artifacts:
            keys.update(to_artifact(artifact).blobs())
        return keys


def _restart_leases(connection: Connection, lease_s: float, which: ColumnElement[bool]) -> None:
    statement = update(tables.jobs).where(_IS_ACTIVE, which)
    connection.execute(statement.values(lease_expires_at=time.time() + lease_s))


def _mend(connection: Connection, gone: ColumnElement[bool], cause: str) -> None:
    # Taken, and looked at again when somebody else had them: another server mends the same jobs.
    lost = select(tables.jobs).where(_IS_ACTIVE, gone).order_by(_JOBS.seq).with_for_update()
    for row in connection.execute(lost).mappings().all():
        job = to_job(row)
        tally(connection, Measure.WORKER_LOST, ["training"])
        if job.status is Status.PAUSING:
            _pause(connection, job)
        elif job.stalled_attempts >= NUM_STALLED_ATTEMPTS:
            drop_states(connection, job.id, keep=0)
            _fail(connection, job.id, cause, _IS_ACTIVE)
        else:
            step = _newest_step(connection, job.id)
            move(connection, job.id, Status.QUEUED, _IS_ACTIVE)
            tell(connection, job.id, Telling(Told.INTERRUPTED.format(cause=cause, step=step), Level.WARN))


def _pause(connection: Connection, job: Job) -> None:
    """Finish a pause whose worker died: at the last committed state, which becomes the checkpoint."""
    row = connection.execute(newest_states(job.id).limit(1)).mappings().one_or_none()
    if row is not None:
        state = to_state(row)
        keep_model(connection, job, state.step, Reason.PAUSE, state.adapter)
    move(connection, job.id, Status.PAUSED)
    tell(connection, job.id, Telling(Told.PAUSED))


def _fail(connection: Connection, job_id: str, cause: str, *conditions: ColumnElement[bool]) -> None:
    message = f"The job failed: its worker stopped {NUM_STALLED_ATTEMPTS} times without a new step ({cause})."
    error = JobError("server_error", message)
    if move(connection, job_id, Status.FAILED, *conditions, error=asdict(error)) is not None:
        tell(connection, job_id, Telling(message, Level.ERROR))


def _newest_step(connection: Connection, job_id: str) -> int:
    row = connection.execute(newest_states(job_id).limit(1)).mappings().one_or_none()
    return 0 if row is None else row["step"]
