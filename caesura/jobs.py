"""A job and its life: the statuses, the legal moves between them, and the words each move is told in. No I/O.

validating_files → queued → running → succeeded | failed | cancelled
running → pausing → paused → queued
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

#: The id of the project that a server begins with.
FIRST_PROJECT = "proj_default"


class Status(StrEnum):
    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    #: A pause was asked for; the worker is finishing its step and saving.
    PAUSING = "pausing"
    #: The training state is saved, the process is gone, the slot is free.
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: From each status, the statuses a job may move to. The store allows nothing else.
TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.VALIDATING_FILES: frozenset({Status.QUEUED, Status.PAUSED, Status.FAILED, Status.CANCELLED}),
    Status.QUEUED: frozenset({Status.RUNNING, Status.PAUSED, Status.FAILED, Status.CANCELLED}),
    Status.RUNNING: frozenset({Status.PAUSING, Status.QUEUED, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}),
    # Back to running: a resume took the pause back. To succeeded: the step in hand was the last one.
    Status.PAUSING: frozenset({Status.PAUSED, Status.RUNNING, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}),
    # To validating_files: the pause came before the files were validated.
    Status.PAUSED: frozenset({Status.QUEUED, Status.VALIDATING_FILES, Status.CANCELLED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}
FINAL = frozenset(status for status, targets in TRANSITIONS.items() if not targets)
UNFINISHED = frozenset(TRANSITIONS) - FINAL
#: What webhooks are told when a job comes into a status, as OpenAI's service calls it; the pause is our own.
ANNOUNCED = {status: f"fine_tuning.job.{status}" for status in (*FINAL, Status.PAUSED)}
#: When it leaves the pause.
RESUMED = "fine_tuning.job.resumed"
#: A worker holds the job's lease, or held it until a moment ago.
ACTIVE = frozenset({Status.RUNNING, Status.PAUSING})


def sources(target: Status) -> frozenset[Status]:
    """The statuses from which a job may move to `target`."""
    return frozenset(status for status, targets in TRANSITIONS.items() if target in targets)


class Level(StrEnum):
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class Told:
    """The texts of the events, as OpenAI's service words them (users' scripts search for them)."""

    CREATED = "Created fine-tuning job: {id}"
    VALIDATING = "Validating training file: {training}"
    VALIDATING_BOTH = "Validating training file: {training} and validation file: {validation}"
    QUEUED = "Files validated, moving job to queued state"
    STARTED = "Fine-tuning job started"
    PAUSING = "Pausing fine-tuning job"
    PAUSED = "Fine-tuning job paused"
    RESUMED = "Fine-tuning job resumed"
    CANCELLED = "Fine tuning process stopping due to job cancellation"
    CHECKPOINT = "Checkpoint created at step {step} with Snapshot ID: {model}"
    MODEL = "New fine-tuned model created: {model}"
    MAX_MINUTES = (
        "The job has trained for {minutes:.1f} minutes, max_minutes being {max_minutes:g}, and pauses itself after "
        "step {step}. Resume it to train for as long again"
    )
    MAX_TOKENS = (
        "The job has trained on {num_tokens} tokens, max_tokens being {max_tokens}, and pauses itself after step "
        "{step}. Resume it to train on: this limit stops it no more"
    )
    STOPPED = (
        "Training ends early, after step {step}: the full validation loss was not below {best:.4f} by more than "
        "{min_delta:g} in {num} validations in a row"
    )
    ABNORMAL = "Lines of the training file that were much harder to learn than the others: {lines}"
    BEST = "The fine-tuned model is that of step {step}, which has the lowest full validation loss: {loss:.4f}"
    SUCCEEDED = "The job has successfully completed"
    ALIAS = "Model '{alias}' is an alias in this server's settings and means '{base}'"
    RELEASED = "The server is stopping; the job goes on from step {step} when it is back"
    STALE = "What the reference said of the rows was kept for other weights or rows; it is computed anew"
    WAITING = "Waiting for a model that a grader asks: {words}"
    INTEGRATION_PUT_OFF = (
        "{title} could not be sent this job's metrics: {reason}. The job goes on; they are kept, and sent as soon as "
        "they can be"
    )
    INTEGRATION_GIVEN_UP = "{title} is not sent this job's metrics any more, three days after its end: {reason}"
    INTERRUPTED = "The worker stopped unexpectedly ({cause}); the job resumes from step {step}"


class Reason(StrEnum):
    """Why a model was kept."""

    EPOCH = "epoch"
    #: Every so many steps, where the job asks for that.
    STEP = "step"
    #: Of a job of reinforcement, which is validated every so many steps.
    VALIDATION = "valid"
    PAUSE = "pause"
    FINAL = "final"


#: How many of the models made at epoch ends stay, the final one included.
NUM_EPOCH_CHECKPOINTS = 3
#: How many of those that `checkpoint_every` has made between them.
NUM_STEP_CHECKPOINTS = 3
#: How many of the models made at validations stay: those with the best rewards.
NUM_BEST_CHECKPOINTS = 3
#: What they are compared by.
VALIDATION_REWARD = "full_valid_mean_reward"
#: What the models of the other methods are compared by.
VALIDATION_LOSS = "full_valid_loss"
#: After this many attempts without a new step the job fails.
NUM_STALLED_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: `code` and `message` for people and scripts, `param` the field at fault."""

    code: str
    message: str
    param: str | None = None


#: The file of an artifact that is no adapter, but holds all weights of a model.
FULL_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A set of blobs under one prefix, named by a row: file name → (bytes, SHA-256)."""

    prefix: str
    files: dict[str, tuple[int, str]]

    def key(self, name: str) -> str:
        """The storage key of the file `name`."""
        return f"{self.prefix}/{name}"

    def blobs(self) -> list[str]:
        return [self.key(name) for name in self.files]

    @property
    def is_full(self) -> bool:
        """Whether it is a model with weights of its own, not an adapter."""
        return FULL_WEIGHTS in self.files


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write for a job. Every write of a worker names `token`; a new claim replaces it."""

    job_id: str
    token: str


@dataclass(frozen=True, slots=True)
class TrainingState:
    """All that a resume needs beside the job's row: what was committed after `step`."""

    step: int
    adapter: Artifact
    optimizer: Artifact


@dataclass(frozen=True, slots=True)
class Model:
    """A model of a job that answers chat: made at an epoch's end, at a pause, or at the job's end."""

    id: str
    name: str
    created_at: int
    job_id: str
    base: str
    step: int
    reason: Reason
    metrics: dict[str, Any]
    adapter: Artifact
    project: str = FIRST_PROJECT


@dataclass(frozen=True, slots=True)
class Event:
    id: str
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """An answer that a job of reinforcement sampled; `data` is what the API tells of it."""

    id: str
    created_at: int
    job_id: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class File:
    id: str
    created_at: int
    bytes: int
    filename: str
    purpose: str
    blob: str
    sha256: str
    project: str = FIRST_PROJECT
    #: From then on it does not exist; None: until it is deleted.
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    created_at: int
    status: Status
    #: The base model's name in the settings.
    base: str
    #: The name its final model will have; checkpoints append `:ckpt-step-N`.
    model_name: str
    #: As in OpenAI's API: `{"type": "dpo", "dpo": {"hyperparameters": {…}}}`.
    method: dict[str, Any]
    training_file: str
    training_blob: str
    seed: int
    validation_file: str | None = None
    validation_blob: str | None = None
    #: The tuned model that the training goes on from, and its adapter, which stays until the job has ended.
    start_model: str | None = None
    start_adapter: Artifact | None = None
    suffix: str | None = None
    metadata: dict[str, str] | None = None
    integrations: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    finished_at: int | None = None
    estimated_finish: int | None = None
    trained_tokens: int | None = None
    result_files: list[str] = field(default_factory=list[str])
    fine_tuned_model: str | None = None
    error: JobError | None = None
    #: Resolved hyperparameters and the arithmetic; chosen at the first attempt, the same at every later one.
    plan: dict[str, Any] | None = None
    #: The last step that was told.
    step: int = 0
    #: How many times a worker has claimed the job.
    attempt: int = 0
    #: Attempts since the last new step.
    stalled_attempts: int = 0
    #: The process that holds the lease, as its executor named it.
    worker: str | None = None
    #: What its creator asked for beyond OpenAI's API, or sent for other services: told again, by its key.
    extras: dict[str, Any] = field(default_factory=dict[str, Any])
    #: Whose it is; its models and result files are the same one's.
    project: str = FIRST_PROJECT

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Numbers once the first attempt has resolved them, before that as they were asked for."""
        asked: dict[str, Any] = self.method[self.method["type"]]["hyperparameters"]
        plan = self.plan or {}
        return {name: plan.get(name, value) for name, value in asked.items()}

    def checkpoint_name(self, step: int) -> str:
        return f"{self.model_name}:ckpt-step-{step}"


def format_model_name(base: str, organization: str, suffix: str | None, unique: str) -> str:
    """OpenAI's form `ft:{base}:{organization}:{suffix}:{unique}`; `/` in a base becomes `--`.

    The names travel as one segment of a URL's path, and hub ids hold a `/`.
    """
    return f"ft:{base.replace('/', '--')}:{organization}:{suffix or ''}:{unique}"
