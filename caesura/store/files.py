"""Uploaded files and result files."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, insert, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from caesura.errors import InvalidRequest, NotFound
from caesura.ids import new_id
from caesura.jobs import FIRST_PROJECT, File
from caesura.storage import Blob
from caesura.store import tables
from caesura.store.database import Database
from caesura.store.rows import now, to_file, within


class Files:
    """Contract: a file exists from the moment its row does until it is deleted or expires; its blob was written before.
    Those of other projects than `project` do not exist here; None: all projects' do.
    """

    def __init__(self, database: Database, project: str | None = None) -> None:
        self._database = database
        self._project = project
        self._own = within(tables.files, project)
        is_it = (tables.files.c.id == bindparam("file_id"), _exists(bindparam("now")), self._own)
        self._one = database.prepare(select(tables.files).where(*is_it))

    def create(self, blob: Blob, filename: str, purpose: str, life_s: int | None = None) -> File:
        """`life_s`: after so many seconds the file expires; None: never."""
        file = new_file(blob, filename, purpose, self._project or FIRST_PROJECT, life_s)
        with self._database.write() as connection:
            insert_file(connection, file)
        return file

    def get(self, file_id: str) -> File:
        """Raises NotFound."""
        row = self._one(file_id=file_id, now=now())
        if row is None:
            raise NotFound(f"No such File object: {file_id}", param="id")
        return to_file(row)

    def list(self, *, purpose: str | None, after: str | None, limit: int, descending: bool) -> tuple[list[File], bool]:
        """A page behind the cursor `after` (a deleted file's id still serves), and whether more lies behind it.

        Raises InvalidRequest for a cursor that never existed.
        """
        seq = tables.files.c.seq
        query = select(tables.files).where(_exists(), self._own).limit(limit + 1)
        query = query.order_by(seq.desc() if descending else seq.asc())
        if purpose is not None:
            query = query.where(tables.files.c.purpose == purpose)
        with self._database.read() as connection:
            if after is not None:
                cursor = connection.execute(
                    select(seq).where(tables.files.c.id == after, self._own)
                ).scalar_one_or_none()
                if cursor is None:
                    raise InvalidRequest(f"Invalid 'after': there is no file '{after}'.", param="after")
                query = query.where(seq < cursor if descending else seq > cursor)
            rows = connection.execute(query).mappings().all()
        return [to_file(row) for row in rows[:limit]], len(rows) > limit

    def delete(self, file_id: str) -> None:
        """Raises NotFound. Jobs that use the file keep reading its blob; the sweep removes it after them."""
        statement = (
            update(tables.files).where(tables.files.c.id == file_id, _exists(), self._own).values(deleted_at=now())
        )
        with self._database.write() as connection:
            deleted = connection.execute(statement).rowcount
        if not deleted:
            raise NotFound(f"No such File object: {file_id}", param="id")

    def expire(self) -> None:
        """Delete, like `delete`, every file whose time is up: nobody sees them any more, but their blobs are named."""
        expired = (tables.files.c.expires_at <= now(), tables.files.c.deleted_at.is_(None))
        with self._database.read() as connection:
            if connection.execute(select(tables.files.c.seq).where(*expired).limit(1)).first() is None:
                return  # the usual case takes no write transaction
        with self._database.write() as connection:
            connection.execute(update(tables.files).where(*expired).values(deleted_at=now()))


def _exists(at: ColumnElement[int] | None = None) -> ColumnElement[bool]:
    files = tables.files.c
    return files.deleted_at.is_(None) & or_(
        files.expires_at.is_(None), files.expires_at > (now() if at is None else at)
    )


def insert_file(connection: Connection, file: File) -> None:
    connection.execute(insert(tables.files).values({name: getattr(file, name) for name in File.__slots__}))


def new_file(blob: Blob, filename: str, purpose: str, project: str = FIRST_PROJECT, life_s: int | None = None) -> File:
    """The value of a file that is about to exist."""
    created_at = now()
    return File(
        id=new_id("file-"),
        created_at=created_at,
        bytes=blob.bytes,
        filename=filename,
        purpose=purpose,
        blob=blob.key,
        sha256=blob.sha256,
        project=project,
        expires_at=None if life_s is None else created_at + life_s,
    )
