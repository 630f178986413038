"""What a job may be asked for beyond OpenAI's API, and what is sent for other services. Both are told again."""

from __future__ import annotations

from typing import Any

from caesura.errors import InvalidRequest
from caesura.schema.jobs import CreateJob

#: Of other services: they mean nothing here.
_FOREIGN = ("trainingType", "eval_id")
#: Our own.
_OWN = ("checkpoint_every", "keep_best", "early_stopping", "max_minutes", "max_tokens")
#: What is decided by the loss of the validation file.
_OF_VALIDATION = ("keep_best", "early_stopping")
#: What a job of reinforcement does not have → what it has instead.
_NOT_OF_REINFORCEMENT = {
    "checkpoint_every": "makes its checkpoints at its validations: leave this out, and set "
    "'method.reinforcement.hyperparameters.eval_interval' to the steps between them",
    "early_stopping": "is validated by rewards, not by a loss: leave this out, and pause or cancel the job",
    "keep_best": "compares rewards: leave this out, and set 'method.reinforcement.keep_best'",
}


def extras_of(body: CreateJob) -> dict[str, Any]:
    """Those that were given, by their keys. Raises InvalidRequest for one that the job's method does not have, and for
    one that needs a validation file where there is none."""
    given = body.model_dump(include={*_OWN, *_FOREIGN}, exclude_none=True)
    if body.method is not None and body.method.type == "reinforcement":
        _refuse(given)
    for name in _OF_VALIDATION:
        if given.get(name) and body.validation_file is None:
            raise InvalidRequest(
                f"Missing required parameter: 'validation_file'. '{name}' goes by the loss on it: upload one and name "
                f"it, or leave out '{name}'.",
                param="validation_file",
                code="missing_required_parameter",
            )
    extras = {name: given[name] for name in (*_OWN, *_FOREIGN) if name in given}
    return extras if body.adapter is None else {**extras, "adapter": body.adapter.given()}


def _refuse(given: dict[str, Any]) -> None:
    for name, remedy in _NOT_OF_REINFORCEMENT.items():
        if name in given:
            message = f"Invalid value for '{name}': 'method.type' is 'reinforcement', which {remedy}."
            raise InvalidRequest(message, param=name, code="invalid_value")
