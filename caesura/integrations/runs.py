"""A run: a job as an integration shows it. What the libraries behind it must keep, and what it is told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from caesura.jobs import Event, Job, Model, Status
from caesura.settings import Settings

Told = str | int | float


class RunUnavailable(Exception):
    """The integration cannot be reached, or refuses the run: `reason` ends a sentence for the job's owner."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at a step."""

    step: int
    #: When it was told, Unix seconds.
    at: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What is to be opened."""

    job: Job
    #: Which of the job's integrations.
    number: int
    #: The last step that has come, by what is known here; the run itself may know better.
    step: int
    settings: Settings

    @property
    def asked(self) -> dict[str, Any]:
        """What the request says of the integration."""
        integration = self.job.integrations[self.number]
        return integration[integration["type"]]


class Run(Protocol):
    """Contract: the job's run, made when it is first opened and gone on with from then on. A step that it has already
    is not told again, so points may be logged that have come before. Every method may raise RunUnavailable.
    """

    def log(self, points: Sequence[Point]) -> None:
        """Tell what was measured, in the order of steps. It may take a while to come."""
        ...

    def last_step(self) -> int:
        """The last step that has come: whatever becomes of this process, it is not to be logged again."""
        ...

    def describe(self, summary: Mapping[str, Told]) -> None:
        """Tell what the job has come to."""
        ...

    def close(self, status: Status) -> None:
        """All that was told has come. The job has ended, or rests in this status and may go on later."""
        ...


def to_point(event: Event) -> Point:
    """What a metric event says, with names such as `train_loss` and `scores/graders/python/mine/train_reward_mean`."""
    values = {name: value for name, value in _flatten(event.data) if name != "step"}
    return Point(event.data["step"], event.created_at, values)


def _flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            if math.isfinite(value):
                yield name, float(value)
        elif isinstance(value, dict):
            yield from _flatten(cast(dict[str, Any], value), f"{name}/")
        elif isinstance(value, list):
            # Of graders, each with its type and its name.
            for item in cast(list[dict[str, Any]], value):
                yield from _flatten(item, f"{name}/{item['type']}/{item['name']}/")


def config_of(job: Job) -> dict[str, Any]:
    """What the job is made of: the same at every opening, as it is first opened when the hyperparameters are known."""
    return {
        "job_id": job.id,
        "model": job.start_model or job.base,
        "base_model": job.base,
        "method": job.method["type"],
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "seed": job.seed,
        "suffix": job.suffix,
        "hyperparameters": job.hyperparameters,
    }


def flat_config_of(job: Job) -> dict[str, str]:
    """The same as texts under names such as `hyperparameters.n_epochs`, without what the job does not have."""
    config = config_of(job)
    numbers = {f"hyperparameters.{name}": value for name, value in config.pop("hyperparameters").items()}
    return {name: str(value) for name, value in (config | numbers).items() if value is not None}


def summary_of(job: Job, models: Sequence[Model]) -> dict[str, Told]:
    """What the job has come to, by names such as `fine_tuned_model` and `checkpoints/20`."""
    told = {
        "status": str(job.status),
        "fine_tuned_model": job.fine_tuned_model,
        "trained_tokens": job.trained_tokens,
        "error": None if job.error is None else job.error.message,
    }
    checkpoints = {f"checkpoints/{model.step}": model.name for model in models if model.name != job.model_name}
    return {name: value for name, value in (told | checkpoints).items() if value is not None}
