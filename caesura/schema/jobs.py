"""Fine-tuning jobs, their events and checkpoints (contract: `/fine_tuning/jobs`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, Tag

from caesura.schema.common import NUMBER, Answer, AutoOrNumber, AutoText, Metadata, NotOffered, Request, Text
from caesura.schema.graders import AnyGrader

Epochs = Annotated[AutoText | Annotated[int, Field(ge=1, le=50), Tag(NUMBER)], AutoOrNumber]
BatchSize = Annotated[AutoText | Annotated[int, Field(ge=1, le=256), Tag(NUMBER)], AutoOrNumber]
Multiplier = Annotated[AutoText | Annotated[float, Field(gt=0, allow_inf_nan=False), Tag(NUMBER)], AutoOrNumber]
#: It becomes a part of the model's name, and so of URLs: no control characters.
Suffix = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^\P{Cc}*$")]


class SupervisedHyperparameters(Request):
    n_epochs: Epochs = "auto"
    batch_size: BatchSize = "auto"
    learning_rate_multiplier: Multiplier = "auto"


class SupervisedMethod(Request):
    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()


class ReinforcementMethod(Request):
    """So far only its grader is looked at: training by it is not offered yet."""

    grader: AnyGrader
    hyperparameters: Any = None
    response_format: Any = None


class Method(Request):
    type: Literal["supervised", "reinforcement"]
    supervised: SupervisedMethod = SupervisedMethod()
    reinforcement: ReinforcementMethod | None = None


class CreateJob(Request):
    model: Text
    training_file: Text
    validation_file: Text | None = None
    method: Method | None = None
    #: The older place of a supervised job's hyperparameters; `method` wins.
    hyperparameters: SupervisedHyperparameters | None = None
    suffix: Suffix | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
    integrations: NotOffered | None = None
    # Sent by clients of other services; they mean nothing here.
    trainingType: Any = None
    user_provided_suffix: Any = None
    eval_id: Any = None


class ErrorOfJob(Answer):
    code: str
    message: str
    param: str | None


class FineTuningJob(Answer):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: str
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    error: ErrorOfJob | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    seed: int
    integrations: list[Any]
    metadata: dict[str, str] | None
    user_provided_suffix: str | None
    usage_metrics: None = None
    shared_with_openai: Literal[False] = False


class JobEvent(Answer):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any]


class Checkpoint(Answer):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    step_number: int
    fine_tuning_job_id: str
    #: Only what was measured: the schema has no null here.
    metrics: dict[str, int | float]
