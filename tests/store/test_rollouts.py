from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, func, select

from caesura.errors import InvalidRequest, NotFound
from caesura.jobs import Job, Lease
from caesura.store import Store, tables
from tests.store.conftest import REINFORCEMENT, MakeJob, only_sqlite, step_telling

Claim = Callable[..., Lease]


def rollout(step: int, split: str, line: int) -> dict[str, Any]:
    return {"step": step, "split": split, "line": line, "sample_index": 0, "errors": {}, "grading_time": 0.5}


def record(store: Store, lease: Lease, *steps: int, lines: tuple[int, ...] = (3, 1)) -> None:
    """Every even step is validated."""
    rollouts = [
        rollout(step, split, line)
        for step in steps
        for split in (("train", "valid") if step % 2 == 0 else ("train",))
        for line in lines
    ]
    store.attempts.record_steps(lease, max(steps), [step_telling(step) for step in steps], 0, rollouts)


def seen(store: Store, job: Job, **chosen: Any) -> list[tuple[int, str, int]]:
    """What all pages together show."""
    found: list[tuple[int, str, int]] = []
    after: str | None = None
    while True:
        records, has_more = store.rollouts.list(job.id, limit=2, after=after, **chosen)
        found += [(one.data["step"], one.data["split"], one.data["line"]) for one in records]
        if not has_more:
            return found
        after = records[-1].id


@contextmanager
def counting_statements(store: Store) -> Iterator[list[str]]:
    said: list[str] = []

    def hear(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        said.append(statement)

    event.listen(store.database._engine, "before_cursor_execute", hear)
    yield said
    event.remove(store.database._engine, "before_cursor_execute", hear)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, [(1, "train", 3), (1, "train", 1), (2, "train", 3), (2, "train", 1), (2, "valid", 3), (2, "valid", 1)]),
        ({"step": 2}, [(2, "train", 3), (2, "train", 1), (2, "valid", 3), (2, "valid", 1)]),
        ({"split": "train"}, [(1, "train", 3), (1, "train", 1), (2, "train", 3), (2, "train", 1)]),
        ({"step": 2, "split": "valid"}, [(2, "valid", 3), (2, "valid", 1)]),
        ({"step": 1, "split": "valid"}, []),
        ({"step": 3}, []),
    ],
    ids=str,
)
def test_the_pages_show_what_was_chosen_in_the_order_of_making_each_once(
    store: Store, make_job: MakeJob, claim: Claim, chosen: dict[str, Any], expected: list[tuple[int, str, int]]
) -> None:
    job, other = make_job(method=REINFORCEMENT), make_job(method=REINFORCEMENT)
    lease, lease_of_other = claim(job, "worker-1"), claim(other, "worker-2")
    for step in (1, 2):
        record(store, lease, step)
        record(store, lease_of_other, step)

    assert seen(store, job, **chosen) == expected


def test_a_replayed_step_leaves_its_rollouts_and_the_next_ones_are_added(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    lease = claim(job := make_job(method=REINFORCEMENT))
    record(store, lease, 1, 2)
    before, _ = store.rollouts.list(job.id, limit=100)
    record(store, lease, 2, 3, lines=(9,))

    after, _ = store.rollouts.list(job.id, limit=100)
    assert after[: len(before)] == before
    assert [one.data for one in after[len(before) :]] == [rollout(3, "train", 9)]


def test_a_step_and_its_rollouts_come_into_being_together(
    store: Store, make_job: MakeJob, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = claim(job := make_job(method=REINFORCEMENT))

    def broken(*_arguments: Any) -> None:
        raise RuntimeError("the power is gone")

    monkeypatch.setattr("caesura.store.attempts.add_rollouts", broken)
    with pytest.raises(RuntimeError):
        record(store, lease, 1)

    assert store.jobs.list_metrics(job.id) == []
    assert store.jobs.get(job.id).step == 0


def test_the_rollouts_of_a_step_are_one_statement_however_many(store: Store, make_job: MakeJob, claim: Claim) -> None:
    lease = claim(job := make_job(method=REINFORCEMENT))
    with counting_statements(store) as said:
        record(store, lease, 1, lines=tuple(range(1, 65)))

    assert sum("INSERT INTO rollouts" in statement for statement in said) == 1
    with store.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(tables.rollouts)).scalar_one() == 64
    assert len(store.rollouts.list(job.id, limit=100)[0]) == 64


@only_sqlite
@pytest.mark.parametrize("is_first", [True, False], ids=["first page", "behind a cursor"])
@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ({}, "rollouts_of_job (job_id=?"),
        ({"step": 2}, "rollouts_of_step (job_id=? AND step=?"),
        ({"split": "valid"}, "rollouts_of_split (job_id=? AND split=?"),
        ({"step": 2, "split": "valid"}, "rollouts_of_step_and_split (job_id=? AND step=? AND split=?"),
    ],
    ids=str,
)
def test_a_page_is_found_by_an_index_and_nothing_is_sorted_or_passed_over(
    store: Store, make_job: MakeJob, claim: Claim, chosen: dict[str, Any], found: str, is_first: bool
) -> None:
    lease = claim(job := make_job(method=REINFORCEMENT))
    record(store, lease, 1, 2)
    after = None if is_first else store.rollouts.list(job.id, limit=1)[0][0].id
    with counting_statements(store) as said:
        store.rollouts.list(job.id, limit=20, after=after, **chosen)

    with store.database.read() as connection:
        query = f"EXPLAIN QUERY PLAN {said[-1]}"
        values = (job.id, *chosen.values(), *(() if is_first else (1,)), 21, 0)
        plan = [row[3] for row in connection.exec_driver_sql(query, values)]
    assert plan == [f"SEARCH rollouts USING INDEX {found}{')' if is_first else ' AND seq>?)'}"]


@pytest.mark.parametrize("of_other", [True, False], ids=["another job's", "nobody's"])
def test_a_cursor_that_is_no_rollout_of_the_job_is_refused(
    store: Store, make_job: MakeJob, claim: Claim, of_other: bool
) -> None:
    job, other = make_job(method=REINFORCEMENT), make_job(method=REINFORCEMENT)
    record(store, claim(other), 1)
    after = store.rollouts.list(other.id, limit=1)[0][0].id if of_other else "rollout_none"

    with pytest.raises(InvalidRequest, match=f"job {job.id} has no rollout '{after}'"):
        store.rollouts.list(job.id, limit=20, after=after)


def test_a_job_that_does_not_exist_has_no_rollouts(store: Store) -> None:
    with pytest.raises(NotFound):
        store.rollouts.list("ftjob-none", limit=20)
