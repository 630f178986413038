"""Uploads: files that come in parts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from caesura.errors import InvalidUploadState, NotFound, TooLarge
from caesura.ids import new_id
from caesura.jobs import FIRST_PROJECT, File
from caesura.storage import Blob
from caesura.store import tables
from caesura.store.database import Database
from caesura.store.files import new_file
from caesura.store.rows import now, within

_UPLOADS, _PARTS = tables.uploads.c, tables.upload_parts.c

#: An upload takes parts, and can be completed, for so long.
UPLOAD_LIFE_S = 3600
#: The parts of an expired upload stay for so long: a completion that began in time may still be joining them.
JOIN_GRACE_S = 900


class UploadStatus(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Upload:
    id: str
    created_at: int
    #: Unix seconds; a pending upload has expired from then on.
    expires_at: int
    status: UploadStatus
    #: What its parts are to have together, as declared.
    bytes: int
    filename: str
    purpose: str
    mime_type: str
    #: How long its file is to live, seconds; None: until it is deleted.
    file_life_s: int | None = None
    #: Of the completed one.
    file_id: str | None = None
    project: str = FIRST_PROJECT


@dataclass(frozen=True, slots=True)
class UploadPart:
    id: str
    upload_id: str
    created_at: int
    bytes: int
    blob: str
    sha256: str


class Uploads:
    """Contract: a part exists from the moment its row does until its upload is over; its blob was written before. An
    upload ends once: completed, with its file in the same transaction, or cancelled, or expired.

    Every method on an upload raises NotFound for an unknown one, and InvalidUploadState, naming the status, for one
    that is over. Uploads of other projects than `project` are unknown; None: no project's are.
    """

    def __init__(self, database: Database, project: str | None = None) -> None:
        self._database = database
        self._project = project
        self._own = within(tables.uploads, project)

    def create(
        self, num_bytes: int, filename: str, purpose: str, mime_type: str, file_life_s: int | None = None
    ) -> Upload:
        """A pending upload of a file of `num_bytes` bytes."""
        created_at = now()
        upload = Upload(
            id=new_id("upload_"),
            created_at=created_at,
            expires_at=created_at + UPLOAD_LIFE_S,
            status=UploadStatus.PENDING,
            bytes=num_bytes,
            filename=filename,
            purpose=purpose,
            mime_type=mime_type,
            file_life_s=file_life_s,
            project=self._project or FIRST_PROJECT,
        )
        values = {name: getattr(upload, name) for name in _UPLOAD_FIELDS}
        with self._database.write() as connection:
            connection.execute(insert(tables.uploads).values(received_bytes=0, **values))
        return upload

    def get_pending(self, upload_id: str) -> Upload:
        """The upload, which takes parts and can be completed."""
        with self._database.read() as connection:
            upload = self._get(connection, upload_id)
        if upload.status is not UploadStatus.PENDING:
            raise _over(upload)
        return upload

    def add_part(self, upload_id: str, blob: Blob, max_bytes: int) -> UploadPart:
        """Raises TooLarge when the upload's parts would have more than `max_bytes` bytes together."""
        part = UploadPart(new_id("part_"), upload_id, now(), blob.bytes, blob.key, blob.sha256)
        received = _UPLOADS.received_bytes + blob.bytes
        # The update holds the upload's row: it cannot end before its part is there.
        statement = (
            update(tables.uploads)
            .where(_UPLOADS.id == upload_id, self._own, _UPLOADS.status == UploadStatus.PENDING)
            .where(_UPLOADS.expires_at > now(), received <= max_bytes)
            .values(received_bytes=received)
        )
        with self._database.write() as connection:
            if not connection.execute(statement).rowcount:
                upload = self._get(connection, upload_id)
                if upload.status is not UploadStatus.PENDING:
                    raise _over(upload)
                raise TooLarge(
                    f"The parts of upload '{upload_id}' would have more than {max_bytes} bytes together. Create a new "
                    "upload, and send each part once.",
                    param="data",
                    code="file_too_large",
                )
            values = {name: getattr(part, name) for name in _PART_FIELDS}
            connection.execute(insert(tables.upload_parts).values(values))
        return part

    def list_parts(self, upload_id: str) -> list[UploadPart]:
        """All parts of the upload, in the order in which they came; none where it is over or unknown."""
        query = select(tables.upload_parts).join(tables.uploads, _UPLOADS.id == _PARTS.upload_id)
        query = query.where(_PARTS.upload_id == upload_id, self._own).order_by(_PARTS.seq)
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [UploadPart(**{name: row[name] for name in _PART_FIELDS}) for row in rows]

    def complete(self, upload_id: str, blob: Blob) -> tuple[Upload, File]:
        """The upload completed, and the file with the joined `blob`, which exists from now on.

        That the upload was pending when the joining began is for the caller to know: it may have expired meanwhile.
        """
        with self._database.write() as connection:
            upload = self._end(connection, upload_id, UploadStatus.COMPLETED)
            file = new_file(blob, upload.filename, upload.purpose, upload.project, upload.file_life_s)
            connection.execute(insert(tables.files).values({name: getattr(file, name) for name in file.__slots__}))
            connection.execute(update(tables.uploads).where(_UPLOADS.id == upload_id).values(file_id=file.id))
        return upload, file

    def cancel(self, upload_id: str) -> Upload:
        with self._database.write() as connection:
            upload = self._get(connection, upload_id)
            if upload.status is not UploadStatus.PENDING:
                raise _over(upload)
            return self._end(connection, upload_id, UploadStatus.CANCELLED)

    def expire(self) -> None:
        """Have every pending upload expired whose time is up, and drop its parts."""
        expired = (_UPLOADS.status == UploadStatus.PENDING, _UPLOADS.expires_at <= now() - JOIN_GRACE_S)
        with self._database.read() as connection:
            ids = connection.execute(select(_UPLOADS.id).where(*expired)).scalars().all()
        for upload_id in ids:
            with self._database.write() as connection:
                statement = update(tables.uploads).where(_UPLOADS.id == upload_id, *expired)
                if connection.execute(statement.values(status=UploadStatus.EXPIRED)).rowcount:
                    _drop_parts(connection, upload_id)

    def _get(self, connection: Connection, upload_id: str) -> Upload:
        query = select(tables.uploads).where(_UPLOADS.id == upload_id, self._own)
        row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise NotFound(f"No such Upload: '{upload_id}'", param="id")
        values: dict[str, Any] = {name: row[name] for name in _UPLOAD_FIELDS}
        is_expired = row["status"] == UploadStatus.PENDING and row["expires_at"] <= now()
        values["status"] = UploadStatus.EXPIRED if is_expired else UploadStatus(row["status"])
        return Upload(**values)

    def _end(self, connection: Connection, upload_id: str, status: UploadStatus) -> Upload:
        """The upload as it is now, ended by one statement, which only one caller's can be; its parts are dropped."""
        is_pending = (_UPLOADS.id == upload_id, self._own, _UPLOADS.status == UploadStatus.PENDING)
        if not connection.execute(update(tables.uploads).where(*is_pending).values(status=status)).rowcount:
            raise _over(self._get(connection, upload_id))
        _drop_parts(connection, upload_id)
        return self._get(connection, upload_id)


_UPLOAD_FIELDS = tuple(Upload.__dataclass_fields__)
_PART_FIELDS = tuple(UploadPart.__dataclass_fields__)


def _drop_parts(connection: Connection, upload_id: str) -> None:
    """Their blobs are named by nobody from now on."""
    connection.execute(delete(tables.upload_parts).where(_PARTS.upload_id == upload_id))


def _over(upload: Upload) -> InvalidUploadState:
    of_file = "" if upload.file_id is None else f" Its file is '{upload.file_id}'."
    return InvalidUploadState(
        f"Upload '{upload.id}' has the status '{upload.status}', and this needs one that is 'pending'.{of_file}"
        + ("" if of_file else " Create a new upload.")
    )
