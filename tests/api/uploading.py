"""Uploads in parts, as tests ask for them."""

from __future__ import annotations

from typing import Any

import httpx
from openai.types import Upload

from tests.api.service import Service

BODY: dict[str, Any] = {"bytes": 6, "filename": "a.bin", "mime_type": "application/octet-stream", "purpose": "evals"}


def create(service: Service, num_bytes: int = 6, purpose: Any = "evals", **more: Any) -> Upload:
    return service.client.uploads.create(
        bytes=num_bytes, filename="train.jsonl", mime_type="text/jsonl", purpose=purpose, **more
    )


def add(service: Service, upload: Upload, *contents: bytes) -> list[str]:
    return [service.client.uploads.parts.create(upload.id, data=data).id for data in contents]


def content(service: Service, upload: Upload) -> bytes:
    assert upload.file is not None
    return service.client.files.content(upload.file.id).content


def is_pending(service: Service, upload: Upload) -> bool:
    return service.store.uploads.get_pending(upload.id).id == upload.id


def ask(service: Service, what: str, upload_id: str, parts: list[str]) -> httpx.Response:
    if what == "parts":
        return service.http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"more"})
    return service.http.post(f"/v1/uploads/{upload_id}/{what}", json={"part_ids": parts})
