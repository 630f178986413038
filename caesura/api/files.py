"""`/files`: upload, list, read, delete."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import quote as url_quote

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from caesura.api.explain import quote, supported
from caesura.api.multipart import receive_upload
from caesura.api.route import Route
from caesura.api.state import Limit, QueryText, ServerDependency
from caesura.data.validate import check_upload
from caesura.errors import InvalidRequest
from caesura.ids import new_token
from caesura.jobs import File
from caesura.schema.common import PageWithIds
from caesura.schema.files import PURPOSES, Deleted, FileObject

router = APIRouter(prefix="/files", route_class=Route)

MAX_PAGE = 10_000
#: Divisible by three, so that pieces encoded to base64 one by one join.
CHUNK_BYTES = 3 * 2**18


@router.post("")
async def create(request: Request, server: ServerDependency) -> FileObject:
    writer = server.storage.writer(f"files/{new_token()}")
    upload = await receive_upload(request, writer, server.settings.max_file_bytes)
    try:
        purpose = _check_purpose(upload.fields)
        if purpose == "fine-tune" and (problem := check_upload(upload.head)):
            raise InvalidRequest(problem, param="file", code="invalid_file_format")
    except InvalidRequest:
        await run_in_threadpool(server.storage.delete, upload.blob.key)
        raise
    return to_wire(await run_in_threadpool(server.store.files.create, upload.blob, upload.filename, purpose))


def _check_purpose(fields: dict[str, str]) -> str:
    for name in fields:
        if name != "purpose":
            name = quote(name)
            raise InvalidRequest(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    if "purpose" not in fields:
        raise InvalidRequest(
            "Missing required parameter: 'purpose'.", param="purpose", code="missing_required_parameter"
        )
    if fields["purpose"] not in PURPOSES:
        values = supported([f"'{purpose}'" for purpose in PURPOSES])
        raise InvalidRequest(
            f"Invalid value: '{quote(fields['purpose'])}'. Supported values are: {values}.",
            param="purpose",
            code="invalid_value",
        )
    return fields["purpose"]


@router.get("")
def list_files(
    server: ServerDependency,
    purpose: QueryText = None,
    after: QueryText = None,
    limit: Annotated[Limit, Query(le=MAX_PAGE)] = MAX_PAGE,
    order: Literal["asc", "desc", "ascending", "descending"] = "desc",
) -> PageWithIds[FileObject]:
    descending = order.startswith("desc")
    files, has_more = server.store.files.list(purpose=purpose, after=after, limit=limit, descending=descending)
    ids = [file.id for file in files] or [None]
    return PageWithIds(data=[to_wire(file) for file in files], has_more=has_more, first_id=ids[0], last_id=ids[-1])


@router.get("/{file_id}")
def retrieve(file_id: str, server: ServerDependency) -> FileObject:
    return to_wire(server.store.files.get(file_id))


@router.delete("/{file_id}")
def delete(file_id: str, server: ServerDependency) -> Deleted:
    server.store.files.delete(file_id)
    return Deleted(id=file_id, object="file")


@router.get("/{file_id}/content")
def content(file_id: str, request: Request, server: ServerDependency) -> Response:
    """The file's bytes. A result file comes base64-encoded, as OpenAI serves it, unless `text/csv` is asked for."""
    file = server.store.files.get(file_id)
    plain = "text/csv" in request.headers.get("accept", "")
    encode = file.purpose == "fine-tune-results" and server.settings.results_base64 and not plain
    server.storage.open(file.blob).close()  # that it is damaged can be told only before the answer begins
    length = 4 * -(-file.bytes // 3) if encode else file.bytes
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{url_quote(file.filename, safe='')}",
        "content-length": str(length),
    }
    return StreamingResponse(_read(server, file, encode), media_type="application/octet-stream", headers=headers)


def _read(server: ServerDependency, file: File, encode: bool) -> Iterator[bytes]:
    with server.storage.open(file.blob) as blob:
        while chunk := blob.read(CHUNK_BYTES):
            yield base64.b64encode(chunk) if encode else chunk


def to_wire(file: File) -> FileObject:
    return FileObject(
        id=file.id, bytes=file.bytes, created_at=file.created_at, filename=file.filename, purpose=file.purpose
    )
