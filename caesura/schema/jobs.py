"""Fine-tuning jobs, their events and checkpoints (contract: `/fine_tuning/jobs`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from caesura.schema.adapters import AdapterOptions
from caesura.schema.chat import ResponseFormat
from caesura.schema.common import NUMBER, Answer, AutoOrNumber, AutoText, Fitted, Metadata, Request, Text
from caesura.schema.graders import AnyGrader
from caesura.schema.integrations import Integration

Epochs = Annotated[AutoText | Annotated[int, Field(ge=1, le=50), Tag(NUMBER)], AutoOrNumber]
BatchSize = Annotated[AutoText | Annotated[int, Field(ge=1, le=256), Tag(NUMBER)], AutoOrNumber]
Multiplier = Annotated[AutoText | Annotated[float, Field(gt=0, allow_inf_nan=False), Tag(NUMBER)], AutoOrNumber]
Beta = Annotated[AutoText | Annotated[float, Field(gt=0, le=2, allow_inf_nan=False), Tag(NUMBER)], AutoOrNumber]
WeightDecay = Annotated[AutoText | Annotated[float, Field(ge=0, allow_inf_nan=False), Tag(NUMBER)], AutoOrNumber]
ComputeMultiplier = Annotated[
    AutoText | Annotated[float, Field(gt=0.00001, le=10, allow_inf_nan=False), Tag(NUMBER)], AutoOrNumber
]
Count = Annotated[AutoText | Annotated[int, Field(ge=1), Tag(NUMBER)], AutoOrNumber]
#: It becomes a part of the model's name, and so of URLs: no control characters.
Suffix = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^\P{Cc}*$")]


class Hyperparameters(Request):
    """Those that every method has."""

    n_epochs: Epochs = "auto"
    batch_size: BatchSize = "auto"
    learning_rate_multiplier: Multiplier = "auto"


class SupervisedHyperparameters(Hyperparameters):
    """A job tells those without a default only where they were given: OpenAI's service does not have them."""

    #: Azure's: how much the tokens count that are not the assistant's.
    prompt_loss_weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None


class DpoHyperparameters(Hyperparameters):
    """A job tells those without a default only where they were given: OpenAI's service does not have them."""

    beta: Beta = "auto"
    #: Azure's name of the weight decay.
    l2_multiplier: WeightDecay | None = None
    loss_type: Literal["sigmoid", "ipo"] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False)] | None = None

    @field_validator("label_smoothing")
    @classmethod
    def refuse_smoothing_of_ipo(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value and info.data.get("loss_type") == "ipo":
            remedy = "the loss_type 'ipo' has none; leave it out, or set loss_type to 'sigmoid'"
            raise PydanticCustomError("smoothing_of_ipo", remedy)
        return value


class SupervisedMethod(Request):
    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()


class DpoMethod(Request):
    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class ReinforcementHyperparameters(Hyperparameters):
    """A job tells those without a default only where they were given: OpenAI's service does not have them."""

    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"
    compute_multiplier: ComputeMultiplier = "auto"
    eval_interval: Count = "auto"
    eval_samples: Count = "auto"
    kl_coefficient: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    updates_per_batch: Annotated[int, Field(ge=1, le=16)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class ToolServer(Request):
    """Azure's: a web service that a model may call while it answers."""

    name: Annotated[Text, StringConstraints(min_length=1, max_length=64)]
    server_url: Text
    headers: dict[str, Text] | None = None


class ReinforcementMethod(Request):
    grader: AnyGrader
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()
    response_format: ResponseFormat | None = None
    #: Make the final model of the checkpoint with the best validation reward, not of the last step.
    keep_best: bool | None = None
    #: What becomes of a job whose grader fails on most answers.
    on_grader_errors: Literal["pause", "fail"] | None = None
    tools: Annotated[list[ToolServer], Field(min_length=1, max_length=128)] | None = None
    max_episode_steps: Annotated[int, Field(ge=1, le=50)] | None = None


MethodType = Literal["supervised", "dpo", "reinforcement"]


class Method(Request):
    """The body under the name of its type; that of no other type may be there."""

    type: MethodType
    supervised: SupervisedMethod = SupervisedMethod()
    dpo: DpoMethod = DpoMethod()
    reinforcement: ReinforcementMethod | None = None

    @field_validator("supervised", "dpo", "reinforcement", mode="before")
    @classmethod
    def refuse_body_of_another_type(cls, value: Any, info: ValidationInfo) -> Any:
        kind, name = info.data.get("type"), info.field_name
        if kind is not None and name != kind:
            remedy = "'method.type' is '{kind}'; leave this out, or set 'method.type' to '{name}'"
            raise PydanticCustomError("body_of_another_type", remedy, {"kind": kind, "name": name})
        return value


class EarlyStopping(Request):
    #: How many full validations in a row may be no better than the best before them.
    patience: Annotated[int, Field(ge=1)] = 2
    #: By how much one must be better to be so.
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class CreateJob(Request):
    model: Text
    training_file: Text
    validation_file: Text | None = None
    method: Method | None = None
    #: The older place of a supervised job's hyperparameters; `method` wins.
    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()
    suffix: Suffix | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
    integrations: Annotated[list[Integration], Field(max_length=5)] = []
    adapter: AdapterOptions | None = None
    #: Azure's name of the suffix.
    user_provided_suffix: Suffix | None = None
    # Beyond OpenAI's API, told again: what a method has of it is checked in caesura/api/extras.py.
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    keep_best: bool | None = None
    #: `true` has its defaults.
    early_stopping: EarlyStopping | None = None
    max_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    # Sent by clients of other services: they mean nothing here, and are told again.
    trainingType: Text | None = None
    eval_id: Text | None = None

    @field_validator("early_stopping", mode="before")
    @classmethod
    def take_switch(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value


#: What OpenAI's schema has in the place of the statuses that it has not.
_SHOWN_STATUS = {"pausing": "running", "paused": "queued"}


class ErrorOfJob(Answer):
    code: str
    message: str
    param: str | None


class FineTuningJob(Fitted):
    """What was sent for other services stands beside these keys."""

    model_config = ConfigDict(frozen=True, extra="allow")

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
    integrations: list[dict[str, Any]]
    metadata: dict[str, str] | None
    user_provided_suffix: str | None
    usage_metrics: None = None
    shared_with_openai: Literal[False] = False

    def fit(self, values: dict[str, Any]) -> dict[str, Any]:
        """The true status stands beside the nearest that OpenAI's schema has, all integrations beside those it has."""
        shown = {
            "status": _SHOWN_STATUS.get(self.status, self.status),
            "integrations": [item for item in self.integrations if item["type"] == "wandb"],
        }
        return values | shown | {"x_status": self.status, "x_integrations": self.integrations}


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
