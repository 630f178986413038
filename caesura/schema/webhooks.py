"""Webhook endpoints (Azure's `/dashboard/webhook_endpoints`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from caesura.schema.common import Answer, Request, Text

EventType = Literal[
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "fine_tuning.job.paused",
    "fine_tuning.job.resumed",
]
#: OpenAI's clients know no others.
ENDS: tuple[EventType, ...] = ("fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled")

Name = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
Url = Annotated[Text, StringConstraints(max_length=2048)]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=16)]


class CreateWebhookEndpoint(Request):
    name: Name
    url: Url
    event_types: EventTypes


class UpdateWebhookEndpoint(Request):
    """What is absent stays as it is."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class WebhookEndpointObject(Answer):
    id: str
    object: Literal["webhook.endpoint"] = "webhook.endpoint"
    created_at: int
    event_types: list[str]
    name: str
    url: str
    signing_secret_hint: str


class NewWebhookEndpoint(WebhookEndpointObject):
    #: Told this once.
    signing_secret: str


class DeletedWebhookEndpoint(Answer):
    id: str
    object: Literal["webhook.endpoint"] = "webhook.endpoint"
    deleted: Literal[True] = True
