"""API keys, and the projects that they open. A key itself is nowhere, only its hash."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, insert, select, update

from caesura.errors import NotFound, SettingsInvalid
from caesura.ids import new_api_key, new_id
from caesura.jobs import FIRST_PROJECT
from caesura.store import tables
from caesura.store.database import Database
from caesura.store.rows import now
from caesura.tenancy import Caller, Project, Role, hash_key

#: The name of the first project.
FIRST_NAME = "default"
_KEYS, _PROJECTS = tables.api_keys.c, tables.projects.c


@dataclass(frozen=True, slots=True)
class ApiKey:
    id: str
    created_at: int
    name: str
    #: Its beginning and its end.
    hint: str
    project: str
    organization: str
    role: Role
    expires_at: int | None
    revoked_at: int | None
    requests_per_minute: int | None
    max_file_bytes: int | None


class Keys:
    """Contract: a key opens its project from the moment its row exists until it is revoked or has expired."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        *,
        organization: str,
        project: str = FIRST_NAME,
        role: Role = Role.MEMBER,
        expires_at: int | None = None,
        requests_per_minute: int | None = None,
        max_file_bytes: int | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key, and its text, which nothing can tell again. A project that is new is made."""
        text = new_api_key()
        with self._database.write() as connection:
            self._database.alone(connection, "projects")
            values = {
                "id": new_id("key_"),
                "created_at": now(),
                "name": name,
                "sha256": hash_key(text.encode()),
                "hint": f"{text[:14]}…{text[-4:]}",
                "project": _find_or_make(connection, organization, project),
                "role": role,
                "expires_at": expires_at,
                "requests_per_minute": requests_per_minute,
                "max_file_bytes": max_file_bytes,
            }
            connection.execute(insert(tables.api_keys).values(values))
            row = connection.execute(_query().where(_KEYS.id == values["id"])).mappings().one()
        return _to_key(row), text

    def list(self) -> list[ApiKey]:
        """All of them, the revoked too, oldest first."""
        with self._database.read() as connection:
            return [_to_key(row) for row in connection.execute(_query().order_by(_KEYS.seq)).mappings()]

    def revoke(self, key_id: str) -> ApiKey:
        """Raises NotFound; a key that is revoked already keeps its time."""
        with self._database.write() as connection:
            row = connection.execute(_query().where(_KEYS.id == key_id)).mappings().one_or_none()
            if row is None:
                raise NotFound(f"There is no key '{key_id}'. `caesura keys list` shows them.", param="id")
            if row["revoked_at"] is None:
                connection.execute(update(tables.api_keys).where(_KEYS.id == key_id).values(revoked_at=now()))
            return _to_key(connection.execute(_query().where(_KEYS.id == key_id)).mappings().one())

    def find(self, key_hash: str) -> Caller | None:
        """Whom the key stands for; None for one that there is none of, or that opens nothing any more."""
        query = _query().where(_KEYS.sha256 == key_hash, _KEYS.revoked_at.is_(None))
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None or (row["expires_at"] is not None and row["expires_at"] <= time.time()):
            return None
        key = _to_key(row)
        return Caller(
            key.id,
            key.organization,
            key.project,
            key.role,
            requests_per_minute=key.requests_per_minute,
            max_file_bytes=key.max_file_bytes,
        )

    def adopt(self, organization: str) -> None:
        """Make the first project the organization's. Raises SettingsInvalid where that has another of its name."""
        is_first = _PROJECTS.id == FIRST_PROJECT
        with self._database.read() as connection:
            owner = connection.execute(select(_PROJECTS.organization).where(is_first)).scalar_one_or_none()
        if owner == organization:
            return  # the usual case takes no write transaction
        has_its_name = (_PROJECTS.organization == organization) & (_PROJECTS.name == FIRST_NAME)
        with self._database.write() as connection:
            self._database.alone(connection, "projects")
            # Another server may have made the first project the organization's a moment ago.
            if connection.execute(select(_PROJECTS.id).where(has_its_name, ~is_first)).first() is not None:
                raise SettingsInvalid(
                    f"The setting 'organization' is '{organization}', which has a project '{FIRST_NAME}' of its own "
                    f"already: the server's first project, of '{owner}', cannot become another. Set it back."
                )
            moved = connection.execute(update(tables.projects).where(is_first).values(organization=organization))
            if not moved.rowcount:
                _insert_project(connection, FIRST_PROJECT, organization, FIRST_NAME)

    def find_project(self, project_id: str) -> Project | None:
        with self._database.read() as connection:
            row = connection.execute(_PROJECT_QUERY.where(_PROJECTS.id == project_id)).mappings().one_or_none()
        return None if row is None else _to_project(row)

    def projects(self) -> list[Project]:
        """Oldest first."""
        with self._database.read() as connection:
            return [_to_project(row) for row in connection.execute(_PROJECT_QUERY.order_by(_PROJECTS.seq)).mappings()]


_PROJECT_QUERY = select(tables.projects)


def _to_project(row: RowMapping) -> Project:
    return Project(row["id"], row["organization"], row["name"], row["created_at"])


def _query() -> Select[Any]:
    return select(*_KEYS, _PROJECTS.organization).join(tables.projects, _PROJECTS.id == _KEYS.project)


def _to_key(row: RowMapping) -> ApiKey:
    values: dict[str, Any] = {name: row[name] for name in ApiKey.__dataclass_fields__}
    values["role"] = Role(row["role"])
    return ApiKey(**values)


def _find_or_make(connection: Connection, organization: str, name: str) -> str:
    """The project's id."""
    query = select(_PROJECTS.id).where(_PROJECTS.organization == organization, _PROJECTS.name == name)
    known = connection.execute(query).scalar_one_or_none()
    if known is not None:
        return known
    return _insert_project(connection, new_id("proj_"), organization, name)


def _insert_project(connection: Connection, project_id: str, organization: str, name: str) -> str:
    values = {"id": project_id, "organization": organization, "name": name, "created_at": now()}
    connection.execute(insert(tables.projects).values(values))
    return project_id
