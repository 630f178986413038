"""Which projects may use a checkpoint beside its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, insert, select, update

from caesura.errors import InvalidRequest, NotFound
from caesura.ids import new_id
from caesura.store import tables
from caesura.store.database import Database
from caesura.store.rows import now

_PERMISSIONS = tables.permissions.c


@dataclass(frozen=True, slots=True)
class Permission:
    id: str
    created_at: int
    #: The model's name.
    checkpoint: str
    project: str


class Permissions:
    """Contract: a permission counts from the moment its row exists until it is deleted. Whose the checkpoint is, is for
    the caller to know.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, checkpoint: str, projects: Sequence[str], organization: str) -> list[Permission]:
        """One for each project, in their order; a project that has one already keeps it. Raises InvalidRequest for a
        project that the organization has not.
        """
        projects = list(dict.fromkeys(projects))
        ids = tables.projects.c.id
        known = select(ids).where(ids.in_(projects), tables.projects.c.organization == organization)
        live = (_PERMISSIONS.checkpoint == checkpoint, _PERMISSIONS.deleted_at.is_(None))
        with self._database.write() as connection:
            self._database.alone(connection, f"permissions {checkpoint}")
            missing = set(projects) - set(connection.execute(known).scalars())
            if missing:
                name = next(project for project in projects if project in missing)
                raise InvalidRequest(
                    f"Invalid 'project_ids': there is no project '{name}'. `caesura keys list` shows them.",
                    param="project_ids",
                    code="invalid_value",
                )
            had = set(connection.execute(select(_PERMISSIONS.project).where(*live)).scalars())
            for project in projects:
                if project not in had:
                    values = {"id": new_id("cp_"), "created_at": now(), "checkpoint": checkpoint, "project": project}
                    connection.execute(insert(tables.permissions).values(values))
            rows = connection.execute(select(tables.permissions).where(*live)).mappings().all()
        by_project = {row["project"]: row for row in rows}
        return [Permission(**{name: by_project[project][name] for name in _FIELDS}) for project in projects]

    def list(
        self, checkpoint: str, *, project: str | None, after: str | None, limit: int, descending: bool
    ) -> tuple[list[Permission], bool]:
        """A page behind the cursor (a deleted permission's id still serves), and whether more lies behind it.

        Raises InvalidRequest for a cursor that never existed.
        """
        seq = _PERMISSIONS.seq
        query = select(tables.permissions).where(
            _PERMISSIONS.checkpoint == checkpoint, _PERMISSIONS.deleted_at.is_(None)
        )
        query = query.order_by(seq.desc() if descending else seq.asc()).limit(limit + 1)
        if project is not None:
            query = query.where(_PERMISSIONS.project == project)
        with self._database.read() as connection:
            if after is not None:
                known = select(seq).where(_PERMISSIONS.id == after, _PERMISSIONS.checkpoint == checkpoint)
                cursor = connection.execute(known).scalar_one_or_none()
                if cursor is None:
                    raise InvalidRequest(f"Invalid 'after': there is no permission '{after}'.", param="after")
                query = query.where(seq < cursor if descending else seq > cursor)
            rows = connection.execute(query).mappings().all()
        return [Permission(**{name: row[name] for name in _FIELDS}) for row in rows[:limit]], len(rows) > limit

    def delete(self, checkpoint: str, permission_id: str) -> None:
        """Raises NotFound."""
        statement = (
            update(tables.permissions)
            .where(
                _PERMISSIONS.id == permission_id,
                _PERMISSIONS.checkpoint == checkpoint,
                _PERMISSIONS.deleted_at.is_(None),
            )
            .values(deleted_at=now())
        )
        with self._database.write() as connection:
            deleted = connection.execute(statement).rowcount
        if not deleted:
            raise NotFound(f"No such Permission: '{permission_id}'", param="id")


_FIELDS = tuple(Permission.__dataclass_fields__)


def permitted(project: str) -> Select[tuple[str]]:
    """The query of the names of models that `project` may use beside its own."""
    return select(_PERMISSIONS.checkpoint).where(_PERMISSIONS.project == project, _PERMISSIONS.deleted_at.is_(None))
