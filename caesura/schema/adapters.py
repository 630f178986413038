"""What a job may say of its adapter, and the settings of a base model for all its jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, Tag

from caesura.schema.common import LIST, TEXT, Request, Text, TextOrList

#: All linear layers but the output head.
ALL_LINEAR = "all-linear"
#: The last part of a layer's name, or more of its end, as PEFT matches it.
TargetName = Annotated[Text, StringConstraints(min_length=1, max_length=512)]
TargetModules = Annotated[
    Annotated[Literal["all-linear"], Tag(TEXT)] | Annotated[list[TargetName], Field(min_length=1), Tag(LIST)],
    TextOrList,
]


#: All weights of the base are trained, in place of an adapter.
FULL = "full"


class AdapterOptions(Request):
    """Each may be left out: a job's own wins over those of its base in the settings, key by key."""

    type: Literal["lora", "qlora", "full"] | None = None
    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | None = None
    target_modules: TargetModules | None = None

    def given(self) -> dict[str, Any]:
        """What is said, by its name."""
        return self.model_dump(exclude_none=True)


def choose_type(asked: Mapping[str, Any], defaults: Mapping[str, Any], start_is_full: bool | None) -> str:
    """The type that a job has which asks for `asked`: where that does not say, as the tuned model has it that the job
    goes on from (`start_is_full`; None: there is none), and only then as its base's settings, `defaults`, say."""
    if "type" in asked:
        return asked["type"]
    if start_is_full:
        return FULL
    kind: str = defaults.get("type", "lora")
    return "lora" if kind == FULL and start_is_full is not None else kind
