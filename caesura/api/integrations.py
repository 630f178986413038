"""Where a job's metrics are to be sent: what a request asks for, held against what this server can."""

from __future__ import annotations

from typing import Any

from caesura.errors import InvalidRequest
from caesura.integrations.kinds import KINDS, find_lack, place_of
from caesura.schema.jobs import CreateJob
from caesura.settings import Settings


def integrations_of(body: CreateJob, job_id: str, settings: Settings) -> list[dict[str, Any]]:
    """As the job tells them. Raises InvalidRequest for one that this server is not set up for, and for one of two that
    would be the same run.
    """
    places: list[tuple[Any, ...]] = []
    told: list[dict[str, Any]] = []
    for number, integration in enumerate(body.integrations):
        values = integration.model_dump()
        lack = find_lack(settings, integration.type)
        if lack is not None:
            raise InvalidRequest(
                f"This server is not set up for {KINDS[integration.type].title}. {lack}, or leave this integration "
                "out.",
                param=f"integrations[{number}]",
                code="integration_not_configured",
            )
        place = place_of(values)
        if place in places:
            first = f"integrations[{places.index(place)}]"
            raise InvalidRequest(
                f"Invalid value for 'integrations[{number}]': it is the same run as '{first}'. Leave one of them out.",
                param=f"integrations[{number}]",
                code="invalid_value",
            )
        places.append(place)
        if integration.type == "wandb":
            values["wandb"]["run_id"] = job_id
        told.append(values)
    return told
