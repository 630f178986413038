"""`/files`: upload, list, read, delete."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal
from urllib.parse import quote as url_quote

from fastapi import APIRouter, Query
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from caesura import faults
from caesura.api.explain import explain
from caesura.api.multipart import receive_upload
from caesura.api.route import Route
from caesura.api.state import CallerDependency, Limit, QueryText, Server, ServerDependency
from caesura.data.validate import check_upload
from caesura.errors import InvalidRequest
from caesura.faults import Point
from caesura.ids import new_token
from caesura.jobs import File
from caesura.schema.files import JSONL_PURPOSES, CreateFile, Deleted, FileObject, FilePage, find_life

router = APIRouter(prefix="/v1/files", route_class=Route)

MAX_PAGE = 10_000
#: Divisible by three, so that pieces encoded to base64 one by one join.
CHUNK_BYTES = 3 * 2**18
#: As the SDKs send a form's objects: a field for each of their keys.
_FIELD_OF_EXPIRY = re.compile(r"expires_after\[(\w{1,64})\]")


@router.post("")
async def create(request: Request, server: ServerDependency, caller: CallerDependency) -> FileObject:
    writer = server.storage.writer(f"files/{new_token()}")
    max_bytes = min(server.settings.max_file_bytes, caller.max_file_bytes or server.settings.max_file_bytes)
    upload = await receive_upload(request, writer, max_bytes)
    try:
        body = _read_fields(upload.fields)
        check_content(body.purpose, upload.head, "file")
    except InvalidRequest:
        await run_in_threadpool(server.storage.delete, upload.blob.key)
        raise
    life_s = find_life(body.purpose, body.expires_after)
    faults.point(Point.UPLOAD_STORED)
    made = await run_in_threadpool(server.store.files.create, upload.blob, upload.filename, body.purpose, life_s)
    faults.point(Point.UPLOAD_MADE)
    # Azure's clients look for what theirs answers at first; a moment later they find it processed.
    return to_wire(made).model_copy(update={"status": "pending"}) if request.state.address.is_azure else to_wire(made)


def _read_fields(fields: dict[str, str]) -> CreateFile:
    """The form's fields; `expires_after` as a field for each of its keys, or as one of JSON. Raises InvalidRequest."""
    body: dict[str, Any] = dict(fields)
    if "expires_after" in body:
        with suppress(ValueError):  # what is no JSON stays a string, which is refused as one
            body["expires_after"] = from_json(body["expires_after"])
    expiry: dict[str, str] = {}
    for name in fields:
        if found := _FIELD_OF_EXPIRY.fullmatch(name):
            expiry[found[1]] = body.pop(name)
    if expiry and "expires_after" not in body:
        body["expires_after"] = expiry
    elif expiry:
        raise InvalidRequest("The form has 'expires_after' in two forms. Send one of them.", param="expires_after")
    try:
        return CreateFile.model_validate(body, strict=False)  # in a form, numbers are text
    except ValidationError as error:
        raise explain([{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]) from error


def check_content(purpose: str, head: bytes, param: str | None) -> None:
    """Raises InvalidRequest, naming `param`, where a file that begins with `head` cannot be one for the purpose."""
    if purpose in JSONL_PURPOSES and (problem := check_upload(head)):
        raise InvalidRequest(problem, param=param, code="invalid_file_format")


@router.get("")
def list_files(
    server: ServerDependency,
    purpose: QueryText = None,
    after: QueryText = None,
    limit: Annotated[Limit, Query(le=MAX_PAGE)] = MAX_PAGE,
    order: Literal["asc", "desc", "ascending", "descending"] = "desc",
) -> FilePage:
    descending = order.startswith("desc")
    files, has_more = server.store.files.list(purpose=purpose, after=after, limit=limit, descending=descending)
    ids = [file.id for file in files] or [None]
    return FilePage(data=[to_wire(file) for file in files], has_more=has_more, first_id=ids[0], last_id=ids[-1])


@router.get("/{file_id}")
def retrieve(file_id: str, server: ServerDependency) -> FileObject:
    return to_wire(server.store.files.get(file_id))


@router.delete("/{file_id}")
def delete(file_id: str, server: ServerDependency) -> Deleted:
    server.store.files.delete(file_id)
    return Deleted(id=file_id, object="file")


@router.get("/{file_id}/content")
def content(file_id: str, request: Request, server: ServerDependency) -> Response:
    """The file's bytes. A job's CSV comes base64-encoded, as OpenAI serves it, unless `text/csv` is asked for."""
    file = server.store.files.get(file_id)
    plain = "text/csv" in request.headers.get("accept", "")
    is_result = file.purpose == "fine-tune-results" and file.filename.endswith(".csv")
    encode = is_result and server.settings.results_base64 and not plain
    server.storage.open(file.blob).close()  # that it is damaged can be told only before the answer begins
    length = 4 * -(-file.bytes // 3) if encode else file.bytes
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{url_quote(file.filename, safe='')}",
        "content-length": str(length),
    }
    return StreamingResponse(_read(server, file, encode), media_type="application/octet-stream", headers=headers)


def _read(server: Server, file: File, encode: bool) -> Iterator[bytes]:
    with server.storage.open(file.blob) as blob:
        while chunk := blob.read(CHUNK_BYTES):
            yield base64.b64encode(chunk) if encode else chunk


def to_wire(file: File) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_at,
        filename=file.filename,
        purpose=file.purpose,
        expires_at=file.expires_at,
    )
