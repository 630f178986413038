from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caesura.errors import NotFound, StorageUnavailable
from caesura.executors import WorkerExit
from caesura.jobs import Job, Status
from caesura.scheduler import SWEEP_GRACE_S, Scheduler
from caesura.settings import Settings
from caesura.storage import Blob
from caesura.store.responses import StoredResponse
from tests.world import World, example_rows, wait_until

Rows = list[dict[str, Any]]


class FakeExecutor:
    """Starts nothing, remembers what it was to start, and tells of the ends that a test makes up."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[WorkerExit] = []
        self.closed = False

    def start(self, job_id: str) -> str:
        self.started.append(job_id)
        return f"worker-{len(self.started)}"

    def tick(self) -> list[WorkerExit]:
        ended, self.ended = self.ended, []
        return ended

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(Settings(data_dir=tmp_path))
    yield world
    world.close()


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor()


def make_scheduler(world: World, executor: FakeExecutor, slots: int = 1) -> Scheduler:
    return Scheduler(world.store, world.storage, slots, lambda _wake: executor)


def new_job(
    world: World, rows: Rows | bytes | None = None, validation: Rows | bytes | None = None, method: str = "supervised"
) -> Job:
    """A job whose files are not validated yet."""
    job = world.create_job(
        example_rows("style_train.jsonl") if rows is None else rows,  # type: ignore[arg-type]
        validation,  # type: ignore[arg-type]
        method=method,
    )
    with world.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE jobs SET status = 'validating_files', validated_at = NULL")
    return job


def status(world: World, job: Job) -> Status:
    return world.store.jobs.get(job.id).status


def test_a_job_with_good_files_is_queued_and_launched(world: World, executor: FakeExecutor) -> None:
    job = new_job(world, validation=example_rows("style_validation.jsonl"))
    make_scheduler(world, executor).tick()

    assert status(world, job) is Status.QUEUED
    assert executor.started == [job.id]


@pytest.mark.parametrize(
    ("training", "validation", "code", "param", "text"),
    [
        (example_rows("style_train.jsonl")[:7], None, "invalid_n_examples", "training_file", "7 example(s)"),
        (b"{}\n" * 12, None, "invalid_training_file", "training_file", "(line 1)"),
        (None, b"not JSON\n", "invalid_validation_file", "validation_file", "Example 1"),
    ],
    ids=["too few", "faulty", "faulty validation"],
)
def test_a_job_with_a_faulty_file_fails_and_says_which_and_where(
    world: World,
    executor: FakeExecutor,
    training: Rows | bytes | None,
    validation: bytes | None,
    code: str,
    param: str,
    text: str,
) -> None:
    job = new_job(world, training, validation)
    make_scheduler(world, executor).tick()

    error = world.store.jobs.get(job.id).error
    assert error is not None
    assert (error.code, error.param) == (code, param)
    assert text in error.message
    assert world.messages(job)[-1] == error.message
    assert executor.started == []


def test_a_job_with_a_faulty_file_names_the_report_of_all_that_is_wrong(world: World, executor: FakeExecutor) -> None:
    job = new_job(world, b"{}\n" * 12)
    make_scheduler(world, executor).tick()

    report = world.report(job)
    assert not report["ok"]
    assert report["files"][0]["num_problems"] == 12


def test_a_job_fails_without_its_report_where_that_cannot_be_stored(
    world: World, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(world, b"{}\n" * 12)

    def refuse(_key: str) -> None:
        raise StorageUnavailable

    monkeypatch.setattr(world.storage, "writer", refuse)
    make_scheduler(world, executor).tick()

    assert status(world, job) is Status.FAILED
    assert world.store.jobs.get(job.id).extras == {}


PAIR = {
    "input": {"messages": [{"role": "user", "content": "Hi"}]},
    "preferred_output": [{"role": "assistant", "content": "Hello"}],
    "non_preferred_output": [{"role": "assistant", "content": "What?"}],
}


@pytest.mark.parametrize(
    ("method", "training", "validation", "param", "file_id"),
    [
        ("dpo", example_rows("style_train.jsonl"), None, "training_file", "file-training"),
        ("dpo", [PAIR] * 10, example_rows("style_train.jsonl"), "validation_file", "file-validation"),
        ("supervised", [PAIR] * 10, None, "training_file", "file-training"),
        ("supervised", None, [PAIR], "validation_file", "file-validation"),
    ],
)
def test_a_job_with_a_file_for_another_method_fails_and_says_which(
    world: World,
    executor: FakeExecutor,
    method: str,
    training: Rows | None,
    validation: Rows | None,
    param: str,
    file_id: str,
) -> None:
    job = new_job(world, training, validation, method)
    make_scheduler(world, executor).tick()

    error = world.store.jobs.get(job.id).error
    assert error is not None
    assert (error.code, error.param) == (f"invalid_{param}", param)
    assert f"Input file {file_id} is in the " in error.message
    assert f"(provided method={method})" in error.message


def test_a_job_with_files_of_preferences_is_queued(world: World, executor: FakeExecutor) -> None:
    job = new_job(world, [PAIR] * 10, [PAIR], "dpo")
    make_scheduler(world, executor).tick()

    assert status(world, job) is Status.QUEUED


def test_a_file_that_cannot_be_read_fails_the_job_without_showing_a_path(
    world: World, executor: FakeExecutor, tmp_path: Path
) -> None:
    job = new_job(world)
    world.storage.delete(job.training_blob)
    make_scheduler(world, executor).tick()

    error = world.store.jobs.get(job.id).error
    assert error is not None
    assert str(tmp_path) not in error.message


def test_jobs_are_launched_in_their_order_into_free_slots_once_each(world: World, executor: FakeExecutor) -> None:
    jobs = [world.create_job(example_rows("style_train.jsonl")) for _ in range(3)]
    scheduler = make_scheduler(world, executor, slots=2)
    for _ in range(3):
        scheduler.tick()

    assert executor.started == [job.id for job in jobs[:2]]


def test_a_slot_is_free_again_when_its_job_is_paused(world: World, executor: FakeExecutor) -> None:
    first, second = (world.create_job(example_rows("style_train.jsonl")) for _ in range(2))
    scheduler = make_scheduler(world, executor)
    scheduler.tick()
    assert world.store.attempts.claim(first.id, "worker-1", 60) is not None
    scheduler.tick()
    assert executor.started == [first.id]

    with world.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE jobs SET status = 'paused' WHERE status = 'running'")
    scheduler.tick()

    assert executor.started == [first.id, second.id]


def test_a_job_whose_worker_died_is_launched_again_in_the_same_tick(world: World, executor: FakeExecutor) -> None:
    job = world.create_job(example_rows("style_train.jsonl"))
    scheduler = make_scheduler(world, executor)
    scheduler.tick()
    assert world.store.attempts.claim(job.id, "worker-1", 60) is not None
    executor.ended.append(WorkerExit("worker-1", job.id, "killed by SIGKILL"))
    scheduler.tick()

    assert executor.started == [job.id, job.id]


def test_the_end_of_a_paused_jobs_worker_does_not_count_against_the_resumed_job(
    world: World, executor: FakeExecutor
) -> None:
    job = world.create_job(example_rows("style_train.jsonl"))
    scheduler = make_scheduler(world, executor)
    scheduler.tick()
    with world.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE jobs SET status = 'paused'")
    scheduler.tick()
    world.store.jobs.resume(job.id)
    scheduler.tick()
    executor.ended.append(WorkerExit("worker-1", job.id, "exit code 0"))
    scheduler.tick()

    assert executor.started == [job.id, job.id]
    assert world.store.jobs.get(job.id).stalled_attempts == 0


def test_a_slow_worker_keeps_its_slot_though_its_job_was_paused_meanwhile(world: World, executor: FakeExecutor) -> None:
    first, second = (world.create_job(example_rows("style_train.jsonl")) for _ in range(2))
    scheduler = make_scheduler(world, executor)
    scheduler.tick()
    world.store.jobs.pause(first.id)
    scheduler.tick()
    world.store.jobs.resume(first.id)
    scheduler.tick()
    assert executor.started == [first.id]
    assert world.store.attempts.claim(first.id, "worker-1", 60) is not None
    scheduler.tick()
    assert executor.started == [first.id]

    world.store.jobs.cancel(first.id)
    scheduler.tick()
    assert executor.started == [first.id, second.id]


def test_a_worker_that_cannot_start_is_tried_three_times(world: World, executor: FakeExecutor) -> None:
    job = world.create_job(example_rows("style_train.jsonl"))
    scheduler = make_scheduler(world, executor)
    for number in range(1, 5):
        scheduler.tick()
        executor.ended.append(WorkerExit(f"worker-{number}", job.id, "exit code 1"))
    scheduler.tick()

    assert executor.started == [job.id] * 3
    assert status(world, job) is Status.FAILED


def test_a_lease_that_ran_out_is_found(world: World, executor: FakeExecutor) -> None:
    job = world.create_job(example_rows("style_train.jsonl"))
    assert world.store.attempts.claim(job.id, "a worker of another server", -1) is not None
    make_scheduler(world, executor).tick()

    assert executor.started == [job.id]


def test_the_sweep_takes_old_blobs_without_a_row_and_nothing_else(
    world: World, executor: FakeExecutor, tmp_path: Path
) -> None:
    job = world.create_job(example_rows("style_train.jsonl"))
    old, young = world.upload(b"old\n"), world.upload(b"young\n")
    long_ago = time.time() - 2 * SWEEP_GRACE_S
    for blob in (old, job.training_blob):
        os.utime(tmp_path / "blobs" / blob, (long_ago, long_ago))
    make_scheduler(world, executor).tick()

    assert {key for key, _ in world.storage.list()} == {young, job.training_blob}


def test_responses_older_than_30_days_are_deleted(world: World, executor: FakeExecutor) -> None:
    days_s = 30 * 24 * 3600
    ages_s = {"resp_old": days_s + 60, "resp_young": days_s - 60}
    for id, age_s in ages_s.items():
        response = {"id": id, "created_at": int(time.time() - age_s), "previous_response_id": None}
        world.store.responses.create(StoredResponse(response, []))
    make_scheduler(world, executor).tick()

    with pytest.raises(NotFound):
        world.store.responses.get("resp_old")
    assert world.store.responses.get("resp_young").response["id"] == "resp_young"


def test_the_blobs_of_what_has_expired_or_ended_are_swept_and_a_pending_uploads_parts_are_not(
    world: World, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str) -> Blob:
        with world.storage.writer(f"files/{name}") as writer:
            writer.write(b"x")
        return writer.blob

    def upload(name: str) -> str:
        upload_id = world.store.uploads.create(1, name, "evals", "text/plain").id
        world.store.uploads.add_part(upload_id, write(name), 9)
        return upload_id

    for name, life_s in (("short", 3600), ("long", 86_400), ("lasting", None)):
        world.store.files.create(write(name), name, "evals", life_s)
    world.store.uploads.cancel(upload("cancelled"))
    world.store.uploads.complete(upload("completed"), write("joined"))
    upload("expired")
    in_time = time.time() + 3600 + SWEEP_GRACE_S + 1
    monkeypatch.setattr(time, "time", lambda: in_time)
    upload("pending")
    old = in_time - SWEEP_GRACE_S - 1
    os.utime(world.settings.data_dir / "blobs" / "files" / "pending", (old, old))
    make_scheduler(world, executor).tick()

    kept = {"long", "lasting", "joined", "pending"}
    assert {key for key, _ in world.storage.list()} == {f"files/{name}" for name in kept}


def test_a_tick_that_fails_does_not_end_the_scheduler(
    world: World, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(world)
    original, failures = world.store.jobs.validating, [1]

    def validating(limit: int) -> list[Job]:
        if failures:
            raise RuntimeError(f"failure {failures.pop()}")
        return original(limit)

    monkeypatch.setattr(world.store.jobs, "validating", validating)
    scheduler = make_scheduler(world, executor)
    scheduler.start()
    wait_until(lambda: executor.started == [job.id], "the job to be launched")
    scheduler.stop()

    assert executor.closed


def test_waking_it_makes_it_look_at_once(world: World, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caesura.scheduler.TICK_S", 3600)
    ticked = threading.Event()
    scheduler = make_scheduler(world, executor)
    original = scheduler.tick
    monkeypatch.setattr(scheduler, "tick", lambda: (original(), ticked.set()))
    scheduler.start()
    assert ticked.wait(60)
    job = new_job(world)
    ticked.clear()
    scheduler.wake()
    assert ticked.wait(60)
    scheduler.stop()

    assert executor.started == [job.id]
