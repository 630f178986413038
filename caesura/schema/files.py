"""Files (contract: `/files`)."""

from __future__ import annotations

from typing import Literal

from caesura.schema.common import Answer

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")


class FileObject(Answer):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed", "pending"] = "processed"


class Deleted(Answer):
    """The answer to the deletion of a file, a model or a response."""

    id: str
    object: Literal["file", "model", "response"]
    deleted: Literal[True] = True
