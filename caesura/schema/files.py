"""Files (contract: `/files`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from caesura.schema.common import Answer, Fitted, PageWithIds, Request

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
#: What OpenAI's schema of a file has in the place of a purpose that it has not.
_SHOWN_PURPOSE = {"evals": "user_data"}
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


class FileObject(Fitted):
    """`expires_at` is there only where it is set."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed", "pending"] = "processed"
    expires_at: int | None = None

    def complete(self, values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if value is not None}

    def fit(self, values: dict[str, Any]) -> dict[str, Any]:
        """Evals are Azure's, and so is a file that is pending."""
        shown = {"purpose": _SHOWN_PURPOSE.get(self.purpose, self.purpose)}
        return values | shown | ({"status": "uploaded"} if self.status == "pending" else {})


class FilePage(PageWithIds[FileObject], Fitted):
    def fit(self, values: dict[str, Any]) -> dict[str, Any]:
        return values | {"first_id": self.first_id or "", "last_id": self.last_id or ""}


class Deleted(Answer):
    """The answer to the deletion of a file, a model or a response."""

    id: str
    object: Literal["file", "model", "response"]
    deleted: Literal[True] = True
