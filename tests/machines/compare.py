"""Whether a database holds what it should: read from the tables themselves, and again as the product reads it."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import select

from caesura.errors import LeaseLost
from caesura.jobs import ACTIVE, FINAL, UNFINISHED, Lease, Reason, Status
from caesura.store import Store, tables
from tests.machines.expected import Expected, ExpectedJob, reward_at

#: What is looked at, in the order in which it came. Put together once: that takes longer than to ask.
QUERIES = {
    table.name: select(*(table.c[name] for name in names.split())).order_by(table.c.seq)
    for table, names in {
        tables.jobs: "id status attempt step worker lease_token lease_expires_at plan stalled_attempts validated_at "
        "deleted_at finished_at error fine_tuned_model",
        tables.events: "job_id message type data",
        tables.states: "job_id step adapter optimizer",
        tables.models: "job_id name step reason adapter deleted_at",
        tables.files: "id blob deleted_at",
        tables.webhook_deliveries: "body",
    }.items()
}
Rows = dict[str, list[dict[str, Any]]]


def read_rows(store: Store) -> Rows:
    """All that there is."""
    with store.database.read() as connection:
        return {name: [row._asdict() for row in connection.execute(query)] for name, query in QUERIES.items()}


def compare(store: Store, expected: Expected) -> None:
    """Raises AssertionError where the tables and the model differ."""
    rows = read_rows(store)
    by_id = {row["id"]: row for row in rows["jobs"]}
    assert list(by_id) == list(expected.jobs)
    for job_id, job in expected.jobs.items():
        _compare_job(by_id[job_id], job)
        assert [row["message"] for row in rows["events"] if row["job_id"] == job_id] == job.told
        states = [
            (row["step"], row["adapter"]["prefix"], row["optimizer"]["prefix"])
            for row in rows["states"]
            if row["job_id"] == job_id
        ]
        assert states == [(state.step, state.adapter.prefix, state.optimizer.prefix) for state in job.states]
        models = [
            (row["name"], row["step"], row["reason"], row["adapter"]["prefix"], row["deleted_at"] is not None)
            for row in rows["models"]
            if row["job_id"] == job_id
        ]
        assert models == [
            (model.name, model.step, model.reason, model.adapter, model.is_deleted) for model in job.models
        ]
        deliveries = [json.loads(row["body"]) for row in rows["webhook_deliveries"]]
        assert [event["type"] for event in deliveries if event["data"]["id"] == job_id] == job.announced
        _check_what_holds_for_any_job(by_id[job_id], rows)
    assert store.recovery.referenced_blobs() == expected.referenced_blobs()


def _compare_job(row: dict[str, Any], job: ExpectedJob) -> None:
    names = ("status", "attempt", "step", "worker", "lease_token", "lease_expires_at", "plan")
    here = {name: row[name] for name in names}
    assert here == {
        "status": job.status,
        "attempt": job.attempt,
        "step": job.step,
        "worker": job.worker,
        "lease_token": job.token,
        "lease_expires_at": job.expires_at,
        "plan": job.plan,
    }
    if job.status in UNFINISHED:
        assert row["stalled_attempts"] == job.stalled
    assert (row["validated_at"] is not None) == job.is_validated
    assert (row["deleted_at"] is not None) == job.is_deleted


def _check_what_holds_for_any_job(row: dict[str, Any], rows: Rows) -> None:
    """Whatever the model says."""
    status = Status(row["status"])
    assert (row["lease_token"] is not None) == (status in ACTIVE)
    assert (row["finished_at"] is not None) == (status in FINAL)
    assert (row["error"] is not None) == (status is Status.FAILED)
    assert (row["fine_tuned_model"] is not None) == (status is Status.SUCCEEDED)
    num_states = sum(state["job_id"] == row["id"] for state in rows["states"])
    assert num_states <= (2 if status in UNFINISHED else 0)
    steps = [
        event["data"]["step"] for event in rows["events"] if event["job_id"] == row["id"] and event["type"] == "metrics"
    ]
    assert steps == list(range(1, len(steps) + 1))


def compare_views(store: Store, expected: Expected, leases: list[Lease]) -> None:
    """The same, as schedulers, workers and clients are told it."""
    jobs = expected.jobs
    in_status = {status: [job_id for job_id, job in jobs.items() if job.status is status] for status in Status}
    working = [job.worker for job in jobs.values() if job.worker is not None]
    assert store.jobs.still_without([*working, "nobody"]) == {"nobody"}
    assert [job.id for job in store.jobs.validating(99)] == in_status[Status.VALIDATING_FILES]
    assert store.jobs.still_queued(list(jobs)) == set(in_status[Status.QUEUED])
    listed, _ = store.jobs.list(after=None, limit=99, metadata=None)
    assert [job.id for job in listed] == [job_id for job_id, job in reversed(jobs.items()) if not job.is_deleted]
    for job_id, job in jobs.items():
        assert store.jobs.list_states(job_id) == job.states[::-1]
        _compare_models(store, job)
    live: list[str] = []
    for lease in leases:
        try:
            assert store.attempts.status(lease) is jobs[lease.job_id].status
            live.append(lease.job_id)
        except LeaseLost:
            assert jobs[lease.job_id].token != lease.token
    assert len(live) == len(set(live)), "two workers hold the same job"
    assert set(live) == {job_id for job_id, job in jobs.items() if job.status in ACTIVE}


def _compare_models(store: Store, job: ExpectedJob) -> None:
    alive = [model for model in job.models if not model.is_deleted]
    listed, _ = store.models.list_of_job(job.job.id, after=None, limit=99)
    assert {model.name for model in listed} == {model.name for model in alive}
    for model in job.models:
        found = store.models.find(model.name)
        assert (found is None) == model.is_deleted
    validated = [model for model in alive if job.of_rewards and model.step > 0]
    best = store.models.best_of_job(job.job.id)
    assert (best is None) == (not validated)
    if best is not None:
        assert reward_at(best.step) == max(reward_at(model.step) for model in validated)
    if job.asked is Status.SUCCEEDED:
        final = next(model for model in job.models if model.reason is Reason.FINAL)
        assert final.name == job.job.model_name
