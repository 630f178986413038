"""Every page costs the same, however many rows there are: each query finds its rows by an index, and in order."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert

from caesura.jobs import Artifact, Job, Reason, Status
from caesura.scheduler import Scheduler
from caesura.storage import LocalStorage
from caesura.store import Store, tables
from caesura.store.models import keep_model
from caesura.store.rollouts import add_rollouts
from tests.store.conftest import MakeJob, only_sqlite
from tests.test_scheduler import FakeExecutor

PROJECT = "proj_default"
PAIRS = {"team": "blue", "run": "1"}
Plans = dict[str, list[str]]


@pytest.fixture
def own(store: Store) -> Store:
    return store.of(PROJECT)


@contextmanager
def explaining(store: Store) -> Iterator[Plans]:
    """Every query that is made within → the lines of SQLite's plan of it."""
    plans: Plans = {}

    def explain(connection: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            lines = connection.connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            plans[statement] = [line[3] for line in lines]

    def explain_prepared(text: str, parameters: list[Any]) -> Any:
        with store.database.read() as connection:
            explain(connection, None, text, parameters)
        return ask(text, parameters)

    engine, asking = store.database._engine, store.database._asking
    ask = asking.ask
    asking.ask = explain_prepared  # type: ignore[method-assign]
    event.listen(engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        event.remove(engine, "before_cursor_execute", explain)
        asking.ask = ask  # type: ignore[method-assign]


def faults(plans: Plans) -> list[str]:
    """What reads rows that are not asked for, or sorts."""
    return [line for plan in plans.values() for line in plan if line.startswith("SCAN") or "TEMP B-TREE" in line]


def make_model(store: Store, job: Job, step: int) -> None:
    with store.database.write() as connection:
        keep_model(connection, job, step, Reason.PAUSE, Artifact("adapters/a", {}))


PAGES: dict[str, Callable[[Store, str], Any]] = {
    "jobs": lambda store, _: store.jobs.list(after=None, limit=2, metadata=None),
    "jobs after": lambda store, job: store.jobs.list(after=job, limit=2, metadata=None),
    "jobs of a pair": lambda store, job: store.jobs.list(after=job, limit=2, metadata={"team": "blue"}),
    "jobs of two pairs": lambda store, job: store.jobs.list(after=job, limit=2, metadata=PAIRS),
    "jobs without": lambda store, job: store.jobs.list(after=job, limit=2, metadata=None, without_metadata=True),
    "events": lambda store, job: store.jobs.list_events(job, after=None, limit=2),
    "events after": lambda store, job: store.jobs.list_events(
        job, after=store.jobs.list_events(job, after=None, limit=1)[0][0].id, limit=2
    ),
    "events to come": lambda store, job: store.jobs.follow_events(
        job, behind=store.jobs.list_events(job, after=None, limit=1)[0][0].id, limit=2
    ),
    "jobs in a status": lambda store, job: store.jobs.list(
        after=job, limit=2, metadata=None, statuses=[Status.QUEUED], method="dpo"
    ),
    "checkpoints": lambda store, job: store.models.list_of_job(job, after=None, limit=2),
    "checkpoints after": lambda store, job: store.models.list_of_job(
        job, after=store.models.list_of_job(job, after=None, limit=1)[0][0].id, limit=2
    ),
    "files": lambda store, _: store.files.list(purpose=None, after=None, limit=2, descending=True),
    "files after": lambda store, _: store.files.list(purpose=None, after="file-0", limit=2, descending=True),
    "files upwards": lambda store, _: store.files.list(purpose=None, after="file-0", limit=2, descending=False),
    "files for": lambda store, _: store.files.list(purpose="fine-tune", after="file-0", limit=2, descending=True),
    "rollouts": lambda store, job: store.rollouts.list(job, limit=2, after="rollout_0"),
    "rollouts of a step": lambda store, job: store.rollouts.list(job, limit=2, step=1, after="rollout_0"),
    "rollouts of a split": lambda store, job: store.rollouts.list(job, limit=2, split="train", after="rollout_0"),
    "rollouts of both": lambda store, job: store.rollouts.list(job, limit=2, step=1, split="train", after="rollout_0"),
    "a job": lambda store, job: store.jobs.get(job),
    "a file": lambda store, _: store.files.get("file-0"),
}


@only_sqlite
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_found_by_an_index_and_in_order(store: Store, own: Store, make_job: MakeJob, name: str) -> None:
    job = make_job(metadata=PAIRS)
    make_model(store, job, 1)
    values = {"created_at": 1, "bytes": 1, "filename": "a", "purpose": "fine-tune", "blob": "files/a", "sha256": "0"}
    with store.database.write() as connection:
        connection.execute(insert(tables.files), {"id": "file-0", **values})
        add_rollouts(connection, job.id, [{"step": 1, "split": "train"}])
        connection.exec_driver_sql("UPDATE rollouts SET id = 'rollout_0'")

    with explaining(store) as plans:
        PAGES[name](own, job.id)

    assert plans
    assert faults(plans) == []


@only_sqlite
def test_a_tick_of_the_scheduler_reads_no_more_than_it_has_room_for(
    store: Store, make_job: MakeJob, tmp_path: Path
) -> None:
    jobs = [make_job() for _ in range(5)]
    executor = FakeExecutor()
    scheduler = Scheduler(store, LocalStorage(tmp_path / "blobs"), 2, lambda _: executor)
    scheduler.tick()
    assert executor.started == [job.id for job in jobs[:2]]

    with explaining(store) as plans:
        scheduler._swept_at = time.monotonic()
        scheduler.tick()

    assert executor.started == [job.id for job in jobs[:2]]
    assert faults(plans) == []
    of_jobs = [query for query in plans if "FROM jobs" in query]
    assert of_jobs
    assert not [query for query in of_jobs if not any(word in query for word in ("LIMIT", "count(", "jobs.id IN"))]


def test_pages_of_checkpoints_pass_over_what_is_deleted_and_meet_a_deleted_cursor(
    store: Store, make_job: MakeJob
) -> None:
    job, other = make_job(), make_job()
    for step, of in itertools.product((1, 2, 3, 4), (job, other)):
        make_model(store, of, step)
    ids = [model.id for model in store.models.list_of_job(job.id, after=None, limit=9)[0]]
    store.models.delete(job.checkpoint_name(3))

    first, more = store.models.list_of_job(job.id, after=None, limit=1)
    rest, no_more = store.models.list_of_job(job.id, after=ids[1], limit=2)
    assert ([model.step for model in first], more) == ([4], True)
    assert ([model.step for model in rest], no_more) == ([2, 1], False)


def test_models_of_one_step_are_listed_the_later_first_and_none_twice(store: Store, make_job: MakeJob) -> None:
    job = make_job()
    make_model(store, job, 5)
    with store.database.write() as connection:
        keep_model(connection, job, 5, Reason.FINAL, Artifact("adapters/b", {}))
    names, after = list[str](), None
    for _ in range(2):
        (model,), _more = store.models.list_of_job(job.id, after=after, limit=1)
        names.append(model.name)
        after = model.id

    assert names == [job.model_name, job.checkpoint_name(5)]
    assert store.models.list_of_job(job.id, after=after, limit=1) == ([], False)


def test_jobs_of_a_pair_are_those_of_the_project(store: Store, make_job: MakeJob) -> None:
    others = make_job(metadata=PAIRS, project="proj_other")
    job = make_job(metadata=PAIRS)

    def listed(view: Store) -> list[str]:
        return [found.id for found in view.jobs.list(after=None, limit=9, metadata=PAIRS)[0]]

    assert listed(store.of(PROJECT)) == [job.id]
    assert listed(store.of("proj_other")) == [others.id]
    assert listed(store) == [job.id, others.id]
