"""Permissions for checkpoints (contract: `/fine_tuning/checkpoints/{checkpoint}/permissions`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from caesura.schema.common import Answer, Request, Text


class CreatePermissions(Request):
    project_ids: Annotated[list[Text], Field(min_length=1, max_length=100)]


class PermissionObject(Answer):
    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


class DeletedPermission(Answer):
    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: Literal[True] = True
