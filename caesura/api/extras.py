"""What a job may be asked for beyond OpenAI's API, and what is sent for other services. Both are told again."""

from __future__ import annotations

from typing import Any

from caesura.errors import InvalidRequest
from caesura.schema.jobs import CreateJob

#: Of other services: they mean nothing here.
_FOREIGN = ("trainingType", "eval_id")
#: Our own.
_OWN = ("checkpoint_every",)
#: What a job of reinforcement does not have → what it has instead.
_NOT_OF_REINFORCEMENT = {
    "checkpoint_every": "its checkpoints are made at its validations: leave this out, and set "
    "'method.reinforcement.hyperparameters.eval_interval' to the steps between them",
}


def extras_of(body: CreateJob) -> dict[str, Any]:
    """Those that were given, by their keys. Raises InvalidRequest for one that the job's method does not have."""
    given = {name: value for name, value in body if value is not None}
    if body.method is not None and body.method.type == "reinforcement":
        _refuse(given)
    return {name: given[name] for name in (*_OWN, *_FOREIGN) if name in given}


def _refuse(given: dict[str, Any]) -> None:
    for name, remedy in _NOT_OF_REINFORCEMENT.items():
        if name in given:
            message = f"Invalid value for '{name}': 'method.type' is 'reinforcement', and {remedy}."
            raise InvalidRequest(message, param=name, code="invalid_value")
