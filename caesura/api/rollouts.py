"""`/fine_tuning/jobs/{id}/rollouts`: every answer that a job of reinforcement sampled. An extension of the API."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from caesura.api.route import Route
from caesura.api.state import Limit, QueryText, ServerDependency
from caesura.schema.common import PageWithIds
from caesura.schema.rollouts import Rollout

router = APIRouter(prefix="/v1/fine_tuning/jobs", route_class=Route)

MAX_PAGE = 100
#: What the database takes for a step.
MAX_STEP = 2**31 - 1
Step = Annotated[int | None, Query(ge=1, le=MAX_STEP)]
Split = Annotated[Literal["train", "valid"] | None, Query()]


@router.get("/{job_id}/rollouts")
def list_rollouts(
    job_id: str,
    server: ServerDependency,
    step: Step = None,
    split: Split = None,
    after: QueryText = None,
    limit: Limit = 20,
) -> PageWithIds[Rollout]:
    records, has_more = server.store.rollouts.list(
        job_id, limit=min(limit, MAX_PAGE), step=step, split=split, after=after
    )
    ids = [record.id for record in records] or [None]
    return PageWithIds(
        data=[
            Rollout(id=record.id, created_at=record.created_at, fine_tuning_job_id=record.job_id, **record.data)
            for record in records
        ],
        has_more=has_more,
        first_id=ids[0],
        last_id=ids[-1],
    )
