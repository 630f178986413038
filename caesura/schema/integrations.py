"""What a job's metrics are sent to (contract: `integrations` of `/fine_tuning/jobs`). MLflow's and TensorBoard's are
our own.

What is sent to an integration, and where, is the request's; the key, and which server, are the settings'.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Discriminator, Field, StringConstraints, Tag

from caesura.schema.common import INTEGRATION_TYPES, UNKNOWN, Request, Text, tag

#: W&B and MLflow refuse longer ones, and some of these characters.
Name = Annotated[Text, StringConstraints(min_length=1, max_length=128, pattern=r"^\P{Cc}*$")]
Project = Annotated[Text, StringConstraints(min_length=1, max_length=128, pattern=r"^[^/\\#?%:\p{Cc}]*$")]
RunTag = Annotated[Text, StringConstraints(min_length=1, max_length=64, pattern=r"^\P{Cc}*$")]
#: As MLflow takes them.
TagKey = Annotated[Text, StringConstraints(min_length=1, max_length=64, pattern=r"^[\w\-. :/]+$")]
TagValue = Annotated[Text, StringConstraints(max_length=500)]
Tags = Annotated[list[RunTag], Field(max_length=64)]


class Wandb(Request):
    project: Project
    #: Default: the job's id.
    name: Name | None = None
    #: A user or a team; default: the key's own.
    entity: Project | None = None
    #: Beside those that every run has.
    tags: Tags = []


class WandbIntegration(Request):
    type: Literal["wandb"]
    wandb: Wandb


class Mlflow(Request):
    experiment: Name
    #: Default: the job's id.
    run_name: Name | None = None
    tags: Annotated[dict[TagKey, TagValue], Field(max_length=64)] = {}


class MlflowIntegration(Request):
    type: Literal["mlflow"]
    mlflow: Mlflow


class Tensorboard(Request):
    """The run's folder is called as the job is."""


class TensorboardIntegration(Request):
    type: Literal["tensorboard"]
    tensorboard: Tensorboard = Tensorboard()


class _UnknownIntegration(Request):
    """What has no type, or one that is none, is told so."""

    type: Literal["wandb", "mlflow", "tensorboard"]


def _type_of(value: Any) -> str:
    kind = cast(dict[str, Any], value).get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return tag(kind) if kind in INTEGRATION_TYPES else UNKNOWN


Integration = Annotated[
    Annotated[WandbIntegration, Tag(tag("wandb"))]
    | Annotated[MlflowIntegration, Tag(tag("mlflow"))]
    | Annotated[TensorboardIntegration, Tag(tag("tensorboard"))]
    | Annotated[_UnknownIntegration, Tag(UNKNOWN)],
    Discriminator(_type_of),
]
