from __future__ import annotations

from collections.abc import Callable

import pytest

from caesura.jobs import Job, JobError, Lease, Level
from caesura.store import Store
from caesura.store.rows import Telling
from caesura.store.shipments import Shipment
from tests.store.conftest import MakeJob, messages, step_telling

NOW = 1000.0
TYPES = ("wandb", "mlflow")
WANDB = {"type": "wandb", "wandb": {"project": "p"}}
MLFLOW = {"type": "mlflow", "mlflow": {"experiment": "e"}}


def take(store: Store, at: float = NOW, limit: int = 9) -> list[Shipment]:
    return store.shipments.claim(at, hold_s=10, types=TYPES, limit=limit)


@pytest.fixture
def running(make_job: MakeJob, claim: Callable[..., Lease]) -> tuple[Job, Lease]:
    job = make_job(integrations=[WANDB])
    return job, claim(job)


def test_a_job_has_a_shipment_for_each_integration_once_it_has_told_a_step(
    store: Store, make_job: MakeJob, claim: Callable[..., Lease]
) -> None:
    make_job()
    job = make_job(integrations=[WANDB, MLFLOW])
    lease = claim(job)
    assert take(store) == []

    store.attempts.record_steps(lease, 1, [step_telling(1)], 0)
    taken = take(store)
    assert [(one.job_id, one.number, one.type, one.step, one.num_tries) for one in taken] == [
        (job.id, 0, "wandb", 0, 0),
        (job.id, 1, "mlflow", 0, 0),
    ]


def test_nobody_is_given_what_another_has_in_hand(store: Store, running: tuple[Job, Lease]) -> None:
    store.attempts.record_steps(running[1], 1, [step_telling(1)], 0)
    [shipment] = take(store)
    assert take(store, NOW + 9) == []
    assert store.shipments.keep(shipment, 0, NOW + 20)
    assert take(store, NOW + 19) == []

    assert [one.seq for one in take(store, NOW + 21)] == [shipment.seq]


def test_what_is_not_asked_for_is_not_given(store: Store, running: tuple[Job, Lease]) -> None:
    store.attempts.record_steps(running[1], 1, [step_telling(1)], 0)

    assert store.shipments.claim(NOW, 10, ["mlflow"], 9) == []
    assert take(store, limit=0) == []
    assert len(take(store)) == 1


def test_who_has_lost_a_shipment_changes_nothing(store: Store, running: tuple[Job, Lease]) -> None:
    job, lease = running
    store.attempts.record_steps(lease, 2, [step_telling(1), step_telling(2)], 0)
    [lost] = take(store)
    [held] = take(store, NOW + 11)
    told = messages(store, job)

    assert not store.shipments.keep(lost, 2, NOW + 99)
    assert not store.shipments.rest(lost)
    assert not store.shipments.put_off(lost, 0.0, Telling("late", Level.WARN))
    assert not store.shipments.end(lost, Telling("late", Level.WARN))
    assert messages(store, job) == told
    assert take(store, NOW + 20) == []
    assert store.shipments.keep(held, 1, NOW)
    [again] = take(store, NOW + 1)
    assert again.step == 1


def test_what_has_come_is_due_again_with_the_next_step_or_the_jobs_end(
    store: Store, running: tuple[Job, Lease]
) -> None:
    job, lease = running
    store.attempts.record_steps(lease, 1, [step_telling(1)], 0)
    [shipment] = take(store)
    store.shipments.keep(shipment, 1, NOW)
    assert store.shipments.rest(shipment)
    assert take(store) == []

    store.attempts.record_steps(lease, 2, [step_telling(2)], 0)
    [shipment] = take(store)
    assert shipment.step == 1
    store.shipments.keep(shipment, 2, NOW)
    store.shipments.rest(shipment)
    store.jobs.cancel(job.id)
    [shipment] = take(store)
    assert store.shipments.end(shipment)
    assert take(store, NOW + 999) == []


def test_what_could_not_be_sent_waits_and_its_job_is_told_once(store: Store, running: tuple[Job, Lease]) -> None:
    job, lease = running
    store.attempts.record_steps(lease, 1, [step_telling(1)], 0)
    warning = Telling("It could not be sent", Level.WARN, key="integration:0:put off")
    for number in range(3):
        [shipment] = take(store, NOW + 100 * number)
        assert shipment.num_tries == number
        assert store.shipments.put_off(shipment, NOW + 100 * number + 50, warning)
        assert take(store, NOW + 100 * number + 49) == []
    assert messages(store, job).count("It could not be sent") == 1

    [shipment] = take(store, NOW + 300)
    store.shipments.keep(shipment, 1, NOW + 300)
    store.shipments.rest(shipment)
    store.attempts.record_steps(lease, 2, [step_telling(2)], 0)
    assert take(store, NOW + 300)[0].num_tries == 0


def test_the_longest_due_comes_first(store: Store, make_job: MakeJob, claim: Callable[..., Lease]) -> None:
    jobs = [make_job(integrations=[WANDB]) for _ in range(3)]
    for job in jobs:
        store.attempts.record_steps(claim(job), 1, [step_telling(1)], 0)
    first = take(store, limit=1)[0]
    assert first.job_id == jobs[0].id
    store.shipments.put_off(first, NOW + 1, Telling("w", key="w"))

    assert [one.job_id for one in take(store, NOW + 2)] == [jobs[1].id, jobs[2].id, jobs[0].id]


def test_steps_are_read_in_pages_in_the_order_they_were_told(store: Store, running: tuple[Job, Lease]) -> None:
    job, lease = running
    store.attempts.record_steps(lease, 3, [step_telling(step) for step in (1, 2, 3)], 0)
    store.attempts.record_steps(lease, 4, [step_telling(step) for step in (2, 3, 4)], 0)
    store.attempts.fail(lease, JobError("server_error", "It broke."))
    first = store.jobs.list_steps(job.id, 0, 3)
    rest = store.jobs.list_steps(job.id, first[-1][0], 3)

    assert [event.data["step"] for _, event in first + rest] == [1, 2, 3, 4]
