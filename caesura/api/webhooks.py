"""`/dashboard/webhook_endpoints`: where the project's events are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter

from caesura.api.route import Route
from caesura.api.state import CallerDependency, Server, ServerDependency
from caesura.errors import InvalidRequest
from caesura.graders.outbound import WEBHOOKS, OutboundRefused, check_url
from caesura.schema.common import PageWithIds
from caesura.schema.webhooks import (
    ENDS,
    CreateWebhookEndpoint,
    DeletedWebhookEndpoint,
    NewWebhookEndpoint,
    UpdateWebhookEndpoint,
    WebhookEndpointObject,
)
from caesura.store.webhooks import WebhookEndpoint
from caesura.tenancy import Role

router = APIRouter(prefix="/v1/dashboard/webhook_endpoints", route_class=Route)

_CHANGE = "change where events are sent"


@router.post("")
def create(body: CreateWebhookEndpoint, server: ServerDependency, caller: CallerDependency) -> NewWebhookEndpoint:
    caller.require(Role.OWNER, _CHANGE)
    _check(server, body.url, body.event_types)
    endpoint = server.store.webhooks.create(body.name, body.url, body.event_types)
    return NewWebhookEndpoint(**_fields(endpoint), signing_secret=endpoint.secret)


@router.get("")
def list_endpoints(server: ServerDependency) -> PageWithIds[WebhookEndpointObject]:
    """All of them: there are never many."""
    data = [WebhookEndpointObject(**_fields(endpoint)) for endpoint in server.store.webhooks.list()]
    ids = [endpoint.id for endpoint in data] or [None]
    return PageWithIds(data=data, has_more=False, first_id=ids[0], last_id=ids[-1])


@router.get("/{endpoint_id}")
def retrieve(endpoint_id: str, server: ServerDependency) -> WebhookEndpointObject:
    return WebhookEndpointObject(**_fields(server.store.webhooks.get(endpoint_id)))


@router.post("/{endpoint_id}")
def update(
    endpoint_id: str, body: UpdateWebhookEndpoint, server: ServerDependency, caller: CallerDependency
) -> WebhookEndpointObject:
    endpoint = server.store.webhooks.get(endpoint_id)
    caller.require(Role.OWNER, _CHANGE)
    _check(server, body.url or endpoint.url, body.event_types or ())
    updated = server.store.webhooks.update(endpoint_id, **body.model_dump(exclude_none=True))
    return WebhookEndpointObject(**_fields(updated))


@router.delete("/{endpoint_id}")
def delete(endpoint_id: str, server: ServerDependency, caller: CallerDependency) -> DeletedWebhookEndpoint:
    server.store.webhooks.get(endpoint_id)
    caller.require(Role.OWNER, _CHANGE)
    server.store.webhooks.delete(endpoint_id)
    return DeletedWebhookEndpoint(id=endpoint_id)


def _check(server: Server, url: str, event_types: Sequence[str]) -> None:
    """Raises InvalidRequest for what could never be sent, or not with these settings."""
    try:
        check_url(url, server.settings.allowed_webhook_hosts, WEBHOOKS)
    except OutboundRefused as refused:
        raise InvalidRequest(f"Invalid 'url': {refused}", param="url", code="invalid_value") from refused
    ours = [name for name in event_types if name not in ENDS]
    if ours and not server.settings.webhook_pause_events:
        raise InvalidRequest(
            f"Invalid value: '{ours[0]}'. OpenAI's clients do not know it; whoever runs this server can offer it "
            "by the setting webhook_pause_events.",
            param="event_types",
            code="invalid_value",
        )


def _fields(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "created_at": endpoint.created_at,
        "event_types": endpoint.event_types,
        "name": endpoint.name,
        "url": endpoint.url,
        "signing_secret_hint": f"whsec_...{endpoint.secret[-4:]}",
    }
