"""`/uploads`: files in parts. Parts are streamed to storage, each its own blob; completing joins them into one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Generator, Sequence
from contextlib import closing
from weakref import WeakValueDictionary

from fastapi import APIRouter
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request

from caesura import faults
from caesura.api import files
from caesura.api.explain import quote
from caesura.api.multipart import in_threads, receive_upload
from caesura.api.route import Route
from caesura.api.state import CallerDependency, Server, ServerDependency
from caesura.data.validate import HEAD_BYTES
from caesura.errors import BlobDamaged, InvalidRequest, NotFound, TooLarge
from caesura.faults import Point
from caesura.ids import new_token
from caesura.jobs import File
from caesura.schema.files import find_life
from caesura.schema.uploads import CompleteUpload, CreateUpload, UploadObject, UploadPartObject
from caesura.storage import Blob, Storage
from caesura.store import Store
from caesura.store.uploads import Upload, UploadPart
from caesura.tenancy import Caller

router = APIRouter(prefix="/v1/uploads", route_class=Route)

MAX_PART_BYTES = 64 * 2**20
#: Parts are joined by pieces of this size.
PIECE_BYTES = 4 * 2**20
#: What was written for a request that ends so is removed at once; after any other fault it is left to the sweep.
_REFUSED = (InvalidRequest, NotFound, TooLarge)
#: By an upload's id: one completion waits for another, lest both write the whole file. Who wins, the store says.
_joining: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


@router.post("")
def create(body: CreateUpload, server: ServerDependency, caller: CallerDependency) -> UploadObject:
    max_bytes = _max_bytes(server, caller)
    if body.bytes > max_bytes:
        raise InvalidRequest(
            f"Invalid 'bytes': integer above maximum value. Expected a value <= {max_bytes}, "
            f"but got {quote(str(body.bytes))} instead.",
            param="bytes",
            code="integer_above_max_value",
        )
    life_s = find_life(body.purpose, body.expires_after)
    return _to_wire(server.store.uploads.create(body.bytes, body.filename, body.purpose, body.mime_type, life_s))


@router.post("/{upload_id}/parts")
async def add_part(
    upload_id: str, request: Request, server: ServerDependency, caller: CallerDependency
) -> UploadPartObject:
    await run_in_threadpool(server.store.uploads.get_pending, upload_id)  # before anything is read
    writer = server.storage.writer(f"parts/{new_token()}")
    received = await receive_upload(request, writer, MAX_PART_BYTES, field="data")
    try:
        _refuse_fields(received.fields)
        # Clients send a part again when they did not hear that it came: so there is room for each twice.
        max_bytes = 2 * _max_bytes(server, caller)
        faults.point(Point.PART_STORED)
        part = await run_in_threadpool(server.store.uploads.add_part, upload_id, received.blob, max_bytes)
    except _REFUSED:
        await run_in_threadpool(server.storage.delete, received.blob.key)
        raise
    faults.point(Point.PART_MADE)
    return UploadPartObject(id=part.id, created_at=part.created_at, upload_id=upload_id)


@router.post("/{upload_id}/complete")
async def complete(upload_id: str, body: CompleteUpload, server: ServerDependency) -> UploadObject:
    async with _joining.setdefault(upload_id, asyncio.Lock()):
        upload, parts = await run_in_threadpool(_find_parts, server.store, upload_id, body.part_ids)
        files.check_content(upload.purpose, await run_in_threadpool(_read_head, server.storage, parts), param=None)
        blob = await _join(server.storage, parts, body.md5)
        faults.point(Point.PARTS_JOINED)
        try:
            upload, file = await run_in_threadpool(server.store.uploads.complete, upload_id, blob)
        except _REFUSED:
            await run_in_threadpool(server.storage.delete, blob.key)
            raise
    faults.point(Point.UPLOAD_COMPLETED)
    return _to_wire(upload, file)


@router.post("/{upload_id}/cancel")
def cancel(upload_id: str, server: ServerDependency) -> UploadObject:
    return _to_wire(server.store.uploads.cancel(upload_id))


def _refuse_fields(fields: dict[str, str]) -> None:
    if fields:
        name = quote(next(iter(fields)))
        raise InvalidRequest(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")


def _max_bytes(server: Server, caller: Caller) -> int:
    return min(server.settings.max_upload_bytes, caller.max_file_bytes or server.settings.max_upload_bytes)


def _find_parts(store: Store, upload_id: str, part_ids: Sequence[str]) -> tuple[Upload, list[UploadPart]]:
    """The upload, and its parts of these ids, which together are what was declared.

    Raises NotFound, InvalidUploadState, InvalidRequest.
    """
    upload = store.uploads.get_pending(upload_id)
    parts = {part.id: part for part in store.uploads.list_parts(upload_id)}
    named: dict[str, UploadPart] = {}
    for part_id in part_ids:
        if part_id not in parts:
            raise InvalidRequest(f"Upload '{upload_id}' has no part '{quote(part_id)}'.", param="part_ids")
        if part_id in named:
            raise InvalidRequest(f"The part '{part_id}' is named twice. Name each part once.", param="part_ids")
        named[part_id] = parts[part_id]
    num_bytes = sum(part.bytes for part in named.values())
    if num_bytes != upload.bytes:
        raise InvalidRequest(
            f"The parts have {num_bytes} bytes together, but the upload was created for {upload.bytes}. Name all parts "
            f"of the file in 'part_ids', or create an upload of {num_bytes} bytes.",
            param="part_ids",
        )
    return upload, list(named.values())


def _read_head(storage: Storage, parts: Sequence[UploadPart]) -> bytes:
    """The beginning of the file, at most HEAD_BYTES."""
    head = b""
    for part in parts:
        if len(head) == HEAD_BYTES:
            break
        with storage.open(part.blob) as blob:
            head += blob.read(HEAD_BYTES - len(head))
    return head


async def _join(storage: Storage, parts: Sequence[UploadPart], md5: str | None) -> Blob:
    """The parts as one new blob; off the event loop, in memory that does not grow with it.

    Raises InvalidRequest, with nothing kept, when its MD5 is not `md5`; BlobDamaged; StorageUnavailable.
    """
    writer = storage.writer(f"files/{new_token()}")
    digest = hashlib.md5(usedforsecurity=False)

    def append(piece: bytes) -> None:
        writer.write(piece)
        if md5 is not None:
            digest.update(piece)

    async with in_threads(writer):
        with closing(_pieces(storage, parts)) as pieces:
            async for piece in iterate_in_threadpool(pieces):
                await run_in_threadpool(append, piece)
        if md5 is not None and digest.hexdigest() != md5:
            raise InvalidRequest(
                f"The file's MD5 is {digest.hexdigest()}, not {md5}. Look at the order of 'part_ids', and send again "
                "what was sent wrong.",
                param="md5",
            )
    return writer.blob


def _pieces(storage: Storage, parts: Sequence[UploadPart]) -> Generator[bytes, None, None]:
    for part in parts:
        digest = hashlib.sha256()
        with storage.open(part.blob) as blob:
            while piece := blob.read(PIECE_BYTES):
                digest.update(piece)
                yield piece
        if digest.hexdigest() != part.sha256:
            raise BlobDamaged(f"The stored part '{part.id}' does not match its checksum.")


def _to_wire(upload: Upload, file: File | None = None) -> UploadObject:
    return UploadObject(
        id=upload.id,
        bytes=upload.bytes,
        created_at=upload.created_at,
        expires_at=upload.expires_at,
        filename=upload.filename,
        purpose=upload.purpose,
        status=upload.status.value,
        file=None if file is None else files.to_wire(file),
    )
