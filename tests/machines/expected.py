"""What the store should hold: written anew, in plain Python, from what is promised, and not from the SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from caesura.errors import InvalidJobState, LeaseLost, NotFound
from caesura.jobs import (
    ACTIVE,
    FINAL,
    NUM_STALLED_ATTEMPTS,
    TRANSITIONS,
    Artifact,
    Job,
    Lease,
    Reason,
    Status,
    Told,
    TrainingState,
)

#: Training states of a job that are kept; its models of epochs, those between them, and its best ones, that are.
NUM_STATES, NUM_EPOCHS, NUM_BETWEEN, NUM_BEST = 2, 3, 3, 3


def reward_at(step: int) -> float:
    """A step is a pure function: whoever validates it comes to the same reward. Some come up twice."""
    return step * 7 % 5 / 4


@dataclass
class ExpectedModel:
    name: str
    step: int
    reason: Reason
    adapter: str
    is_deleted: bool = False


@dataclass
class ExpectedJob:
    job: Job
    of_rewards: bool = False
    status: Status = Status.VALIDATING_FILES
    is_validated: bool = False
    is_deleted: bool = False
    attempt: int = 0
    stalled: int = 0
    step: int = 0
    worker: str | None = None
    token: str | None = None
    expires_at: float | None = None
    plan: dict[str, Any] | None = None
    #: The last is the newest.
    states: list[TrainingState] = field(default_factory=list[TrainingState])
    models: list[ExpectedModel] = field(default_factory=list[ExpectedModel])
    #: The events' texts in order, and what may not be told again.
    told: list[str] = field(default_factory=list[str])
    keys: set[str] = field(default_factory=set[str])
    announced: list[str] = field(default_factory=list[str])
    #: How it must have ended, once somebody has seen to that.
    asked: Status | None = None

    def __post_init__(self) -> None:
        self.tell(Told.CREATED.format(id=self.job.id))
        self.tell(Told.VALIDATING.format(training=self.job.training_file))

    @property
    def newest(self) -> TrainingState | None:
        """The one that was saved last, whatever its step: where later ones are damaged, a worker begins before them."""
        return self.states[-1] if self.states else None

    def tell(self, message: str, key: str | None = None) -> None:
        if key is None or key not in self.keys:
            self.told.append(message)
        if key is not None:
            self.keys.add(key)

    def move(self, to: Status) -> None:
        assert to in TRANSITIONS[self.status], f"{self.status} → {to}"
        self.status = to
        if to not in ACTIVE:
            self.worker = self.token = self.expires_at = None
        if to in FINAL:
            assert self.asked in (None, to)
            self.asked = to
            self.states = []
        if to in FINAL or to is Status.PAUSED:
            self.announced.append(f"fine_tuning.job.{to}")

    def fail(self, message: str) -> None:
        self.move(Status.FAILED)
        self.tell(message)

    def fail_for_stalling(self, cause: str) -> None:
        self.fail(f"The job failed: its worker stopped 3 times without a new step ({cause}).")

    def save(self, state: TrainingState, reason: Reason | None) -> None:
        self.states = [*self.states, state][-NUM_STATES:]
        if reason is not None:
            self.keep_model(state.step, reason, state.adapter)

    def keep_model(self, step: int, reason: Reason, adapter: Artifact) -> None:
        name = self.job.model_name if reason is Reason.FINAL else f"{self.job.model_name}:ckpt-step-{step}"
        model = next((model for model in self.models if model.name == name), None)
        if model is None:
            self.models.append(ExpectedModel(name, step, reason, adapter.prefix))
        elif reason is Reason.PAUSE:  # whatever was made of the step, and became of that: from now on it is there
            if model.is_deleted:
                model.adapter = adapter.prefix
            model.reason, model.is_deleted = reason, False
        if reason is Reason.FINAL:
            self.tell(Told.MODEL.format(model=name), "model:final")
        else:
            self.tell(Told.CHECKPOINT.format(step=step, model=name), f"model:{step}")
        alive = sorted((model for model in self.models if not model.is_deleted), key=lambda model: model.step)
        epochs = [model for model in alive if model.reason in (Reason.EPOCH, Reason.FINAL)]
        epochs.sort(key=lambda model: model.reason is Reason.FINAL)  # the final one stays, whichever step's it is
        between = [model for model in alive if model.reason is Reason.STEP]
        best = sorted(
            (model for model in alive if model.reason is Reason.VALIDATION), key=lambda model: reward_at(model.step)
        )
        for model in epochs[:-NUM_EPOCHS] + between[:-NUM_BETWEEN] + best[:-NUM_BEST]:
            model.is_deleted = True

    def mend(self, cause: str) -> None:
        """Its worker is gone."""
        state = self.newest
        if self.status is Status.PAUSING:
            if state is not None:
                self.keep_model(state.step, Reason.PAUSE, state.adapter)
            self.move(Status.PAUSED)
            self.tell(Told.PAUSED)
        elif self.stalled >= NUM_STALLED_ATTEMPTS:
            self.fail_for_stalling(cause)
        else:
            self.move(Status.QUEUED)
            self.tell(Told.INTERRUPTED.format(cause=cause, step=0 if state is None else state.step))


class Expected:
    """All jobs. What somebody does here raises what the store must raise, and changes nothing then."""

    def __init__(self) -> None:
        self.jobs: dict[str, ExpectedJob] = {}
        #: The blobs of files that exist.
        self.file_blobs: set[str] = set()

    def seen(self, job_id: str) -> ExpectedJob:
        """The job, as the API sees it."""
        if self.jobs[job_id].is_deleted:
            raise NotFound
        return self.jobs[job_id]

    def held(self, lease: Lease) -> ExpectedJob:
        """The job, as its worker sees it."""
        if self.jobs[lease.job_id].token != lease.token:
            raise LeaseLost
        return self.jobs[lease.job_id]

    # --- what clients ask ---

    def pause(self, job_id: str) -> Status:
        job = self.seen(job_id)
        if job.status is Status.RUNNING:
            job.move(Status.PAUSING)
            job.tell(Told.PAUSING)
        elif job.status in (Status.VALIDATING_FILES, Status.QUEUED):
            job.move(Status.PAUSED)
            job.tell(Told.PAUSED)
        elif job.status in FINAL:
            raise InvalidJobState
        return job.status

    def resume(self, job_id: str) -> Status:
        job = self.seen(job_id)
        if job.status is Status.PAUSING:
            job.move(Status.RUNNING)
        elif job.status is not Status.PAUSED:
            raise InvalidJobState
        elif job.is_validated:
            job.move(Status.QUEUED)
            job.stalled = 0
        else:
            job.move(Status.VALIDATING_FILES)
        job.announced.append("fine_tuning.job.resumed")
        job.tell(Told.RESUMED)
        return job.status

    def cancel(self, job_id: str) -> Status:
        job = self.seen(job_id)
        if job.status in FINAL:
            raise InvalidJobState
        job.move(Status.CANCELLED)
        job.tell(Told.CANCELLED)
        return job.status

    def delete(self, job_id: str) -> None:
        job = self.seen(job_id)
        if job.status not in FINAL:
            raise InvalidJobState
        job.is_deleted = True

    # --- what workers do ---

    def claim(self, job_id: str, worker: str, expires_at: float) -> bool:
        """The token is the store's to choose."""
        job = self.jobs[job_id]
        if job.status is not Status.QUEUED:
            return False
        job.move(Status.RUNNING)
        job.worker, job.expires_at = worker, expires_at
        job.attempt += 1
        job.stalled += 1
        job.tell(Told.STARTED, "started")
        return True

    def renew(self, lease: Lease, expires_at: float) -> Status:
        job = self.held(lease)
        job.expires_at = expires_at
        return job.status

    def record_steps(self, lease: Lease, steps: Sequence[int], last: int) -> None:
        job = self.held(lease)
        if last > job.step:
            job.step, job.stalled = last, 0
        for step in steps:
            job.tell(f"Step {step}/99", f"step:{step}")

    def save(self, lease: Lease, state: TrainingState, reason: Reason | None) -> set[str]:
        """The blobs that the worker may delete."""
        job = self.held(lease)
        before = {key for one in [*job.states, state] for key in one.adapter.blobs() + one.optimizer.blobs()}
        job.save(state, reason)
        return before - self.referenced_blobs()

    def pause_as_asked(self, lease: Lease, state: TrainingState) -> bool:
        job = self.held(lease)
        job.save(state, Reason.PAUSE)
        if job.status is not Status.PAUSING:
            return False
        job.move(Status.PAUSED)
        job.tell(Told.PAUSED)
        return True

    def pause_itself(self, lease: Lease, state: TrainingState, warning: str) -> None:
        job = self.held(lease)
        job.tell(warning)
        if job.status is Status.RUNNING:
            job.move(Status.PAUSING)
            job.tell(Told.PAUSING)
        job.save(state, Reason.PAUSE)
        job.move(Status.PAUSED)
        job.tell(Told.PAUSED)

    def release(self, lease: Lease, state: TrainingState) -> None:
        job = self.held(lease)
        job.save(state, None)
        if job.status is Status.PAUSING:  # what was asked for is done, though the server is stopping
            job.keep_model(state.step, Reason.PAUSE, state.adapter)
            job.move(Status.PAUSED)
            job.tell(Told.PAUSED)
        else:
            job.move(Status.QUEUED)
            job.stalled = 0
            job.tell(Told.RELEASED.format(step=state.step))

    def finish(self, lease: Lease, step: int, adapter: Artifact, results_blob: str) -> None:
        job = self.held(lease)
        job.keep_model(step, Reason.FINAL, adapter)
        job.move(Status.SUCCEEDED)
        job.tell(Told.SUCCEEDED)
        self.file_blobs.add(results_blob)

    def fail(self, lease: Lease, message: str) -> None:
        self.held(lease).fail(message)

    def set_plan(self, lease: Lease, plan: dict[str, Any]) -> dict[str, Any]:
        job = self.held(lease)
        job.plan = job.plan or plan
        return job.plan

    # --- what the scheduler does ---

    def mark_valid(self, job_id: str) -> bool:
        job = self.jobs[job_id]
        if job.status is not Status.VALIDATING_FILES:
            return False
        job.move(Status.QUEUED)
        job.is_validated = True
        job.tell("Files validated, moving job to queued state")
        return True

    def mark_invalid(self, job_id: str, message: str) -> bool:
        job = self.jobs[job_id]
        if job.status is not Status.VALIDATING_FILES:
            return False
        job.fail(message)
        return True

    def worker_gone(self, worker: str, cause: str) -> None:
        for job in self.jobs.values():
            if job.worker == worker:
                job.mend(cause)

    def expire_leases(self, at: float) -> None:
        for job in self.jobs.values():
            if job.status in ACTIVE and job.expires_at is not None and job.expires_at < at:
                job.mend("its lease ran out")

    def reserve(self, slots: int, at: float, for_s: float, coming: Sequence[str]) -> dict[str, int]:
        queued = {job_id: job for job_id, job in self.jobs.items() if job.status is Status.QUEUED}
        reserved = {
            job_id for job_id, job in queued.items() if job.expires_at and at <= job.expires_at <= at + 2 * for_s
        }
        room = slots - len(reserved) - sum(job.status in ACTIVE for job in self.jobs.values())
        chosen = [job_id for job_id in queued if job_id not in reserved and job_id not in coming][: max(0, room)]
        self.keep_reserved(chosen, at + for_s)
        return {job_id: self.jobs[job_id].attempt for job_id in chosen}

    def keep_reserved(self, job_ids: Sequence[str], until: float) -> None:
        for job_id in job_ids:
            if self.jobs[job_id].status is Status.QUEUED:
                self.jobs[job_id].expires_at = until

    def launch_failed(self, job_id: str, attempt: int, cause: str) -> None:
        """A worker that was started after so many claims has ended without one."""
        job = self.jobs[job_id]
        if job.status is Status.QUEUED and job.attempt == attempt:
            job.stalled += 1
            job.expires_at = None
            if job.stalled >= NUM_STALLED_ATTEMPTS:
                job.fail_for_stalling(cause)

    def referenced_blobs(self) -> set[str]:
        keys = set(self.file_blobs)
        for job in self.jobs.values():
            for state in job.states:
                keys.update(state.adapter.blobs() + state.optimizer.blobs())
            if job.status not in FINAL:
                keys.add(job.job.training_blob)
                keys.update(job.job.start_adapter.blobs() if job.job.start_adapter else ())
            keys.update(f"{model.adapter}/adapter" for model in job.models if not model.is_deleted)
        return keys
