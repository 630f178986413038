"""Files (contract: `/files`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from caesura.schema.common import Answer, Request

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
#: Files for these purposes are JSONL.
JSONL_PURPOSES = frozenset({"batch", "fine-tune"})
#: A file of the purpose `batch` lives for so long unless told otherwise: 30 days.
BATCH_LIFE_S = 30 * 86_400


class ExpiresAfter(Request):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=30 * 86_400)]


class CreateFile(Request):
    """The fields of a new file's form, beside the file."""

    purpose: Purpose
    expires_after: ExpiresAfter | None = None


def find_life(purpose: str, expires_after: ExpiresAfter | None) -> int | None:
    """How long a new file lives, seconds; None: until it is deleted."""
    if expires_after is not None:
        return expires_after.seconds
    return BATCH_LIFE_S if purpose == "batch" else None


class FileObject(Answer):
    """`expires_at` is there only where it is set."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed", "pending"] = "processed"
    expires_at: int | None = None

    @model_serializer(mode="wrap")
    def _leave_out(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = serialize(self)
        return {key: value for key, value in values.items() if value is not None}


class Deleted(Answer):
    """The answer to the deletion of a file, a model or a response."""

    id: str
    object: Literal["file", "model", "response"]
    deleted: Literal[True] = True
