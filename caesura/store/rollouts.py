"""The answers that jobs of reinforcement sampled, with what graders said of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, insert, select

from caesura.errors import InvalidRequest
from caesura.ids import new_id
from caesura.jobs import RolloutRecord
from caesura.store import tables
from caesura.store.database import Database
from caesura.store.jobs import get_job
from caesura.store.rows import now

_ROLLOUTS = tables.rollouts.c


class Rollouts:
    """Contract: the rollouts of a step come into being together, with the step's event, and never change."""

    def __init__(self, database: Database, project: str | None = None) -> None:
        self._database = database
        self._project = project

    def list(
        self, job_id: str, *, limit: int, step: int | None = None, split: str | None = None, after: str | None = None
    ) -> tuple[list[RolloutRecord], bool]:
        """Rollouts behind the cursor, in the order in which they were made, and whether more lie behind the page.

        Raises NotFound for an unknown job, InvalidRequest for an unknown cursor.
        """
        query = select(tables.rollouts).where(_ROLLOUTS.job_id == job_id).order_by(_ROLLOUTS.seq).limit(limit + 1)
        if step is not None:
            query = query.where(_ROLLOUTS.step == step)
        if split is not None:
            query = query.where(_ROLLOUTS.split == split)
        with self._database.read() as connection:
            get_job(connection, job_id, self._project)
            if after is not None:
                known = select(_ROLLOUTS.seq).where(_ROLLOUTS.id == after, _ROLLOUTS.job_id == job_id)
                cursor = connection.execute(known).scalar_one_or_none()
                if cursor is None:
                    raise InvalidRequest(f"Invalid 'after': job {job_id} has no rollout '{after}'.", param="after")
                query = query.where(_ROLLOUTS.seq > cursor)
            rows = connection.execute(query).mappings().all()
        records = [RolloutRecord(row["id"], row["created_at"], row["job_id"], row["data"]) for row in rows[:limit]]
        return records, len(rows) > limit


def add_rollouts(connection: Connection, job_id: str, rollouts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the rollouts of steps; those of a step that has some already, as it is replayed, are left as they are.

    Returns those that were written.
    """
    steps = {rollout["step"] for rollout in rollouts}
    present = select(_ROLLOUTS.step).where(_ROLLOUTS.job_id == job_id, _ROLLOUTS.step.in_(steps)).distinct()
    told = set(connection.execute(present).scalars()) if steps else set[int]()
    new = [rollout for rollout in rollouts if rollout["step"] not in told]
    rows = [
        {
            "id": new_id("rollout_"),
            "job_id": job_id,
            "created_at": now(),
            "step": rollout["step"],
            "split": rollout["split"],
            "data": rollout,
        }
        for rollout in new
    ]
    if rows:
        connection.execute(insert(tables.rollouts), rows)
    return new
