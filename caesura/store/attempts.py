"""What a worker may do to its job. Every write names the lease's token and fails with LeaseLost when it is gone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, case, insert, select, update

from caesura.errors import LeaseLost
from caesura.ids import new_token
from caesura.jobs import (
    Artifact,
    File,
    Job,
    JobError,
    Lease,
    Level,
    Reason,
    Status,
    Told,
    TrainingState,
)
from caesura.store import tables
from caesura.store.database import Database
from caesura.store.files import insert_file
from caesura.store.measures import Measure, observe, tally
from caesura.store.models import drop_states, keep_model
from caesura.store.reports import attach_report
from caesura.store.rollouts import add_rollouts
from caesura.store.rows import Telling, move, now, tell, to_job

_JOBS = tables.jobs.c
#: Training states kept of a job: the newest, and one more should that be damaged.
NUM_STATES = 2


class Attempts:
    """Contract: a job has at most one lease. Each method is one transaction that holds the job's row;
    when it raises LeaseLost nothing was written, and nothing will ever be written under that lease again.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, job_id: str, worker: str, lease_s: float) -> tuple[Job, Lease] | None:
        """queued → running under a new lease; None when the job is not queued (another worker was first)."""
        lease = Lease(job_id, new_token())
        with self._database.write() as connection:
            job = move(
                connection,
                job_id,
                Status.RUNNING,
                _JOBS.status == Status.QUEUED,
                worker=worker,
                lease_token=lease.token,
                lease_expires_at=time.time() + lease_s,
                attempt=_JOBS.attempt + 1,
                stalled_attempts=_JOBS.stalled_attempts + 1,
            )
            if job is None:
                return None
            if tell(connection, job_id, Telling(Told.STARTED, key="started")):
                waited_s = max(0.0, time.time() - job.created_at)
                observe(connection, Measure.QUEUE_WAIT, job.method["type"], [waited_s])
            tally(connection, Measure.ATTEMPT, [job.method["type"]])
        return job, lease

    def renew(self, lease: Lease, lease_s: float) -> Status:
        """Prolong the lease; returns the job's status, `pausing` when a pause was asked for."""
        with self._database.write() as connection:
            return _hold(connection, lease, lease_expires_at=time.time() + lease_s).status

    def status(self, lease: Lease) -> Status:
        """The job's status, cheaply. Raises LeaseLost."""
        query = select(_JOBS.status).where(_JOBS.id == lease.job_id, _JOBS.lease_token == lease.token)
        with self._database.read() as connection:
            status = connection.execute(query).scalar_one_or_none()
        if status is None:
            raise LeaseLost
        return Status(status)

    def set_plan(self, lease: Lease, plan: dict[str, Any]) -> dict[str, Any]:
        """Record the plan of the job's first attempt; returns the plan that holds, which may be an earlier one."""
        with self._database.write() as connection:
            job = _hold(connection, lease)
            if job.plan is not None:
                return job.plan
            connection.execute(update(tables.jobs).where(_JOBS.id == lease.job_id).values(plan=plan))
        return plan

    def tell(self, lease: Lease, *tellings: Telling) -> None:
        with self._database.write() as connection:
            _hold(connection, lease)
            tell(connection, lease.job_id, *tellings)

    def record_steps(
        self,
        lease: Lease,
        last_step: int,
        tellings: list[Telling],
        estimated_finish: int,
        rollouts: Sequence[dict[str, Any]] = (),
        took_s: Mapping[str, float] | None = None,
    ) -> None:
        """Tell the metrics of the steps up to `last_step`, and their rollouts; those told before stay as they are.

        `took_s`: how long steps took, by the keys of their tellings.
        """
        with self._database.write() as connection:
            job = _hold(
                connection,
                lease,
                step=case((_JOBS.step < last_step, last_step), else_=_JOBS.step),
                stalled_attempts=case((_JOBS.step < last_step, 0), else_=_JOBS.stalled_attempts),
                estimated_finish=estimated_finish,
            )
            told = tell(connection, lease.job_id, *tellings)
            steps_s = [step_s for key, step_s in (took_s or {}).items() if key in told]
            observe(connection, Measure.STEP, job.method["type"], steps_s)
            _count_grades(connection, job, add_rollouts(connection, lease.job_id, rollouts))

    def save(self, lease: Lease, state: TrainingState, reason: Reason | None = None) -> list[str]:
        """Commit a training state and, given a reason, make a model of its adapter.

        Returns the keys of the blobs that this leaves without a row: the caller may delete them.
        """
        with self._database.write() as connection:
            return _save(connection, _hold(connection, lease), state, reason)

    def pause(self, lease: Lease, state: TrainingState) -> bool:
        """Commit the state and its checkpoint, then pausing → paused and the lease is gone.

        False when the pause was taken back meanwhile: the state is committed, the job still running.
        """
        with self._database.write() as connection:
            _save(connection, _hold(connection, lease), state, Reason.PAUSE)
            paused = move(connection, lease.job_id, Status.PAUSED, _JOBS.status == Status.PAUSING)
            if paused is not None:
                tell(connection, lease.job_id, Telling(Told.PAUSED))
        return paused is not None

    def pause_itself(self, lease: Lease, state: TrainingState, warning: Telling) -> None:
        """Say why, commit the state and its checkpoint, and pause, whether or not somebody asked for it meanwhile."""
        with self._database.write() as connection:
            job = _hold(connection, lease)
            tell(connection, job.id, warning)
            if move(connection, job.id, Status.PAUSING, _JOBS.status == Status.RUNNING) is not None:
                tell(connection, job.id, Telling(Told.PAUSING))
            _save(connection, job, state, Reason.PAUSE)
            moved = move(connection, job.id, Status.PAUSED)
            assert moved is not None  # the lease was held a moment ago, in this transaction
            tell(connection, job.id, Telling(Told.PAUSED))

    def release(self, lease: Lease, state: TrainingState) -> None:
        """Commit the state and give the job back to the queue: its server is stopping. Pause it instead if that was
        asked for a moment ago.
        """
        with self._database.write() as connection:
            job = _hold(connection, lease)
            pauses = job.status is Status.PAUSING
            _save(connection, job, state, Reason.PAUSE if pauses else None)
            if pauses:
                moved = move(connection, job.id, Status.PAUSED)
                tell(connection, job.id, Telling(Told.PAUSED))
            else:
                moved = move(connection, job.id, Status.QUEUED, stalled_attempts=0)
                tell(connection, job.id, Telling(Told.RELEASED.format(step=state.step)))
            assert moved is not None  # the lease was held a moment ago, in this transaction

    def finish(self, lease: Lease, step: int, adapter: Artifact, results: Sequence[File], trained_tokens: int) -> None:
        """Publish the final model and the result files; the job succeeds, its training states are dropped."""
        with self._database.write() as connection:
            job = _hold(connection, lease)
            for file in results:
                insert_file(connection, file)
            keep_model(connection, job, step, Reason.FINAL, adapter)
            drop_states(connection, job.id, keep=0)
            moved = move(
                connection,
                job.id,
                Status.SUCCEEDED,
                fine_tuned_model=job.model_name,
                trained_tokens=trained_tokens,
                result_files=[file.id for file in results],
            )
            assert moved is not None  # the lease was held a moment ago, in this transaction
            tell(connection, job.id, Telling(Told.SUCCEEDED))

    def attach_report(self, lease: Lease, file: File) -> None:
        """The report of the job's data is a file from now on; one that it had before stays a file."""
        with self._database.write() as connection:
            attach_report(connection, _hold(connection, lease), file)

    def fail(self, lease: Lease, error: JobError) -> None:
        """The job fails; its training states are dropped, its checkpoints stay."""
        with self._database.write() as connection:
            job = _hold(connection, lease)
            drop_states(connection, job.id, keep=0)
            moved = move(connection, job.id, Status.FAILED, error=asdict(error))
            assert moved is not None
            tell(connection, job.id, Telling(error.message, Level.ERROR))


def _hold(connection: Connection, lease: Lease, **values: Any) -> Job:
    """Take the job's row for this transaction, writing `values`. Raises LeaseLost."""
    statement = (
        update(tables.jobs)
        .where(_JOBS.id == lease.job_id, _JOBS.lease_token == lease.token)
        .values(values or {"id": lease.job_id})
        .returning(*tables.jobs.c)
    )
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise LeaseLost
    return to_job(row)


def _count_grades(connection: Connection, job: Job, rollouts: Sequence[dict[str, Any]]) -> None:
    if rollouts:
        grader: str = job.method["reinforcement"]["grader"]["type"]
        observe(connection, Measure.GRADE, grader, (rollout["grading_time"] for rollout in rollouts))
        flags = (flag for rollout in rollouts for flag in rollout["errors"])
        tally(connection, Measure.GRADE_ERROR, (f"{grader}/{flag}" for flag in flags))


def _save(connection: Connection, job: Job, state: TrainingState, reason: Reason | None) -> list[str]:
    values = {
        "job_id": job.id,
        "created_at": now(),
        "step": state.step,
        "adapter": asdict(state.adapter),
        "optimizer": asdict(state.optimizer),
    }
    connection.execute(insert(tables.states).values(values))
    if reason is not None:
        keep_model(connection, job, state.step, reason, state.adapter)
    return drop_states(connection, job.id, keep=NUM_STATES)
