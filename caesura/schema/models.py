"""Models (contract: `/models`)."""

from __future__ import annotations

from typing import Literal

from caesura.schema.common import Answer


class ModelObject(Answer):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[ModelObject]
