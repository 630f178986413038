"""Tuned models: the checkpoints and the final model of every job."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, delete, insert, select, tuple_, update
from sqlalchemy.sql.elements import ColumnElement

from caesura.errors import InvalidRequest, NotFound
from caesura.ids import new_id
from caesura.jobs import (
    NUM_BEST_CHECKPOINTS,
    NUM_EPOCH_CHECKPOINTS,
    NUM_STEP_CHECKPOINTS,
    UNFINISHED,
    VALIDATION_LOSS,
    VALIDATION_REWARD,
    Artifact,
    Job,
    Model,
    Reason,
    Told,
)
from caesura.store import tables
from caesura.store.database import Database
from caesura.store.permissions import permitted
from caesura.store.rows import Telling, now, tell, to_artifact, to_model, within

_MODELS = tables.models.c
#: What a step's event tells beside the metrics that OpenAI's checkpoints have.
_OF_STEP_ALONE = frozenset({"total_steps", "learning_rate", "tokens_per_second"})


class Models:
    """Contract: a model answers chat from the moment its row exists until it is deleted. Those of other projects than
    `project` do not exist here, but for those it has a permission for; None: all projects' do.
    """

    def __init__(self, database: Database, project: str | None = None) -> None:
        self._database = database
        self._own = within(tables.models, project)
        self._usable = self._own if project is None else self._own | _MODELS.name.in_(permitted(project))

    def find(self, name: str) -> Model | None:
        """The model that the project may use under this name."""
        query = select(tables.models).where(_MODELS.name == name, _MODELS.deleted_at.is_(None), self._usable)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else to_model(row)

    def get(self, name: str) -> Model:
        """The project's own model of this name, or checkpoint of this id. Raises NotFound."""
        is_it = (_MODELS.name == name) | (_MODELS.id == name)
        query = select(tables.models).where(is_it, _MODELS.deleted_at.is_(None), self._own)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise NotFound(f"The model '{name}' does not exist", param="model", code="model_not_found")
        return to_model(row)

    def list(self) -> list[Model]:
        """Every tuned model of the project's own, oldest first."""
        query = select(tables.models).where(_MODELS.deleted_at.is_(None), self._own).order_by(_MODELS.seq)
        with self._database.read() as connection:
            return [to_model(row) for row in connection.execute(query).mappings()]

    def list_of_job(self, job_id: str, *, after: str | None, limit: int) -> tuple[list[Model], bool]:
        """The job's checkpoints behind the cursor, highest step first, and whether more lie behind the page.

        Raises InvalidRequest for a cursor that never existed.
        """
        # A final model that is a checkpoint again has that one's step, and stands before it.
        newest_first = _MODELS.step.desc(), _MODELS.seq.desc()
        query = select(tables.models).where(_MODELS.job_id == job_id, _MODELS.deleted_at.is_(None))
        query = query.order_by(*newest_first).limit(limit + 1)
        with self._database.read() as connection:
            if after is not None:
                known = select(_MODELS.step, _MODELS.seq).where(_MODELS.id == after, _MODELS.job_id == job_id)
                cursor = connection.execute(known).one_or_none()
                if cursor is None:
                    raise InvalidRequest(f"Invalid 'after': job {job_id} has no checkpoint '{after}'.", param="after")
                query = query.where(tuple_(_MODELS.step, _MODELS.seq) < tuple_(*cursor))
            rows = connection.execute(query).mappings().all()
        return [to_model(row) for row in rows[:limit]], len(rows) > limit

    def best_of_job(self, job_id: str) -> Model | None:
        """The job's checkpoint with the best validation reward, the latest of several; None where none has one."""
        return self._first(_measured(job_id, _reward()).order_by(_reward().desc(), _MODELS.step.desc()))

    def least_loss_of_job(self, job_id: str) -> Model | None:
        """The job's checkpoint with the lowest full validation loss, the earliest of several; None where none has
        one."""
        return self._first(_by_loss(job_id))

    def _first(self, query: Select[Any]) -> Model | None:
        with self._database.read() as connection:
            row = connection.execute(query.limit(1)).mappings().one_or_none()
        return None if row is None else to_model(row)

    def delete(self, name: str) -> None:
        """Raises NotFound. The job keeps the name; chat with it is refused from now on.

        Jobs that started from it still read its adapter; the sweep removes that after them.
        """
        with self._database.write() as connection:
            hold_model(connection, name, self._own, deleted_at=now())


def hold_model(connection: Connection, name: str, *conditions: ColumnElement[bool], **values: Any) -> None:
    """Take the model's row for this transaction, writing `values`. Raises NotFound."""
    is_it = (_MODELS.name == name, _MODELS.deleted_at.is_(None), *conditions)
    statement = update(tables.models).where(*is_it).values(values or {"name": name})
    if not connection.execute(statement).rowcount:
        raise NotFound(f"The model '{name}' does not exist", param="model", code="model_not_found")


def keep_model(connection: Connection, job: Job, step: int, reason: Reason, adapter: Artifact) -> None:
    """Make the model of `step` exist, with its event; drop the epochs' models beyond the last three, and those
    that were made between them beyond the last three, and those of validations beyond the three best.

    A replayed step meets its model again and leaves it, but for one thing: what a pause has made stays for good, and
    is there even where the step's model was dropped or deleted before.
    """
    name = job.model_name if reason is Reason.FINAL else job.checkpoint_name(step)
    kept = {"prefix": adapter.prefix, "files": adapter.files}
    is_it = _MODELS.name == name
    existing = connection.execute(select(_MODELS.deleted_at).where(is_it)).one_or_none()
    if existing is None:
        values = {
            "id": new_id("ftckpt_"),
            "name": name,
            "created_at": now(),
            "job_id": job.id,
            "base": job.base,
            "project": job.project,
            "step": step,
            "reason": reason,
            "metrics": _metrics_at(connection, job.id, step),
            "adapter": kept,
        }
        connection.execute(insert(tables.models).values(values))
    elif reason is Reason.PAUSE:
        # Its own adapter may have been swept.
        again = {} if existing.deleted_at is None else {"deleted_at": None, "adapter": kept}
        connection.execute(update(tables.models).where(is_it).values(reason=reason, **again))
    if reason is Reason.FINAL:
        tell(connection, job.id, Telling(Told.MODEL.format(model=name), key="model:final"))
    else:
        tell(connection, job.id, Telling(Told.CHECKPOINT.format(step=step, model=name), key=f"model:{step}"))
    _prune(connection, job)


def _metrics_at(connection: Connection, job_id: str, step: int) -> dict[str, Any]:
    """The numbers that were told of the step."""
    events = tables.events.c
    query = select(events.data).where(events.job_id == job_id, events.key == f"step:{step}")
    data: dict[str, Any] = connection.execute(query).scalar_one_or_none() or {"step": step}
    return {
        name: value
        for name, value in data.items()
        if name not in _OF_STEP_ALONE and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _prune(connection: Connection, job: Job) -> None:
    live = _MODELS.job_id == job.id, _MODELS.deleted_at.is_(None)
    # The final model stays, whichever step's it is.
    last = (_MODELS.reason == Reason.FINAL).desc(), _MODELS.step.desc()
    groups = [
        ((Reason.EPOCH, Reason.FINAL), last, NUM_EPOCH_CHECKPOINTS),
        ((Reason.STEP,), last, NUM_STEP_CHECKPOINTS),
        ((Reason.VALIDATION,), (_reward().desc().nulls_last(), _MODELS.step.desc()), NUM_BEST_CHECKPOINTS),
    ]
    surplus: list[int] = []
    for reasons, order, num_kept in groups:
        query = select(_MODELS.seq).where(*live, _MODELS.reason.in_(reasons)).order_by(*order).offset(num_kept)
        surplus += connection.execute(query).scalars()
    is_surplus = _MODELS.seq.in_(surplus)
    if job.extras.get("keep_best"):
        is_surplus &= _MODELS.seq.not_in(_by_loss(job.id).with_only_columns(_MODELS.seq).limit(1))
    connection.execute(update(tables.models).where(is_surplus).values(deleted_at=now()))


def _measured(job_id: str, metric: ColumnElement[float]) -> Select[Any]:
    return select(tables.models).where(_MODELS.job_id == job_id, metric.is_not(None), _MODELS.deleted_at.is_(None))


def _by_loss(job_id: str) -> Select[Any]:
    """The query of the job's checkpoints that were validated in full, the best first."""
    loss = _MODELS.metrics[VALIDATION_LOSS].as_float()
    return _measured(job_id, loss).order_by(loss, _MODELS.step, _MODELS.seq)


def _reward() -> ColumnElement[float]:
    return _MODELS.metrics[VALIDATION_REWARD].as_float()


def start_adapters() -> Select[Any]:
    """The query of the adapters that jobs which have not ended start from."""
    jobs = tables.jobs.c
    return select(jobs.start_adapter).where(jobs.start_adapter.is_not(None), jobs.status.in_(UNFINISHED))


def drop_states(connection: Connection, job_id: str, keep: int) -> list[str]:
    """Forget all but the newest `keep` training states of the job; returns the blobs that no row names any more."""
    states = tables.states.c
    query = select(tables.states).where(states.job_id == job_id).order_by(states.seq.desc())
    surplus = connection.execute(query.offset(keep)).mappings().all()
    connection.execute(delete(tables.states).where(states.seq.in_([row["seq"] for row in surplus])))
    named = select(_MODELS.adapter).where(_MODELS.job_id == job_id, _MODELS.deleted_at.is_(None))
    prefixes = {
        adapter["prefix"] for query in (named, start_adapters()) for adapter in connection.execute(query).scalars()
    }
    dropped = [to_artifact(row[column]) for row in surplus for column in ("adapter", "optimizer")]
    return [key for artifact in dropped if artifact.prefix not in prefixes for key in artifact.blobs()]
