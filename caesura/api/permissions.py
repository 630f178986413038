"""`/fine_tuning/checkpoints/{checkpoint}/permissions`: which other projects may use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fastapi import APIRouter

from caesura.api.route import Route
from caesura.api.state import CallerDependency, Limit, QueryText, ServerDependency
from caesura.schema.common import PageWithIds
from caesura.schema.permissions import CreatePermissions, DeletedPermission, PermissionObject
from caesura.store.permissions import Permission
from caesura.tenancy import Role

router = APIRouter(prefix="/v1/fine_tuning/checkpoints", route_class=Route)

MAX_PAGE = 100
_SHARE = "share a checkpoint"


@router.post("/{checkpoint:path}/permissions")
def create(
    checkpoint: str, body: CreatePermissions, server: ServerDependency, caller: CallerDependency
) -> PageWithIds[PermissionObject]:
    model = server.store.models.get(checkpoint)
    caller.require(Role.OWNER, _SHARE)
    return _to_page(server.store.permissions.create(model.name, body.project_ids, caller.organization), has_more=False)


@router.get("/{checkpoint:path}/permissions")
def list_permissions(
    checkpoint: str,
    server: ServerDependency,
    project_id: QueryText = None,
    after: QueryText = None,
    limit: Limit = 10,
    order: Literal["asc", "desc", "ascending", "descending"] = "descending",
) -> PageWithIds[PermissionObject]:
    permissions, has_more = server.store.permissions.list(
        server.store.models.get(checkpoint).name,
        project=project_id,
        after=after,
        limit=min(limit, MAX_PAGE),
        descending=order.startswith("desc"),
    )
    return _to_page(permissions, has_more)


@router.delete("/{checkpoint:path}/permissions/{permission_id}")
def delete(
    checkpoint: str, permission_id: str, server: ServerDependency, caller: CallerDependency
) -> DeletedPermission:
    model = server.store.models.get(checkpoint)
    caller.require(Role.OWNER, _SHARE)
    server.store.permissions.delete(model.name, permission_id)
    return DeletedPermission(id=permission_id)


def _to_page(permissions: Sequence[Permission], has_more: bool) -> PageWithIds[PermissionObject]:
    ids = [permission.id for permission in permissions] or [None]
    data = [PermissionObject(id=one.id, created_at=one.created_at, project_id=one.project) for one in permissions]
    return PageWithIds(data=data, has_more=has_more, first_id=ids[0], last_id=ids[-1])
