"""Uploads (contract: `/uploads`)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from caesura.schema.common import Answer, Request, Text
from caesura.schema.files import ExpiresAfter, FileObject, Purpose

_MD5 = re.compile(r"[0-9a-f]{32}")


def _check_md5(value: str) -> str:
    value = value.lower()
    if not _MD5.fullmatch(value):
        raise PydanticCustomError("md5", "expected an MD5 as 32 hexadecimal digits")
    return value


Name = Annotated[Text, StringConstraints(min_length=1, max_length=1024)]


class CreateUpload(Request):
    filename: Name
    purpose: Purpose
    bytes: Annotated[int, Field(ge=0)]
    mime_type: Name
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Request):
    #: In the order of their bytes.
    part_ids: Annotated[list[Text], Field(min_length=1)]
    md5: Annotated[str, AfterValidator(_check_md5)] | None = None


class UploadObject(Answer):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None = None


class UploadPartObject(Answer):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
