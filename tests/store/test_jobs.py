from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from caesura.errors import InvalidJobState, InvalidRequest, NotFound
from caesura.jobs import FINAL, Job, JobError, Lease, Status
from caesura.store import Store
from tests.store.conftest import MakeJob, make_state, messages, step_telling


def test_a_new_job_reads_back_as_it_was_made(store: Store, make_job: MakeJob) -> None:
    job = make_job(Status.VALIDATING_FILES, metadata={"team": "blue"}, suffix="ahoy", validation_file="file-2")

    assert store.jobs.get(job.id) == job
    assert job.metadata == {"team": "blue"}


def test_the_first_events_are_openais_in_their_order(store: Store, make_job: MakeJob) -> None:
    job = make_job(validation_file="file-2")

    assert messages(store, job) == [
        f"Created fine-tuning job: {job.id}",
        "Validating training file: file-1 and validation file: file-2",
        "Files validated, moving job to queued state",
    ]


def test_an_unknown_job_is_not_found(store: Store) -> None:
    for ask in (store.jobs.get, store.jobs.pause, store.jobs.resume, store.jobs.cancel):
        with pytest.raises(NotFound, match="Could not find fine tune: ftjob-x"):
            ask("ftjob-x")


@pytest.mark.parametrize("status", [Status.VALIDATING_FILES, Status.QUEUED])
def test_a_waiting_job_is_paused_at_once(store: Store, make_job: MakeJob, status: Status) -> None:
    assert store.jobs.pause(make_job(status).id).status is Status.PAUSED


def test_a_job_paused_before_its_files_were_validated_is_validated_after_its_resume(
    store: Store, make_job: MakeJob
) -> None:
    job = make_job(Status.VALIDATING_FILES)
    store.jobs.pause(job.id)

    assert not store.jobs.mark_valid(job.id)
    assert store.jobs.resume(job.id).status is Status.VALIDATING_FILES


def test_a_paused_job_goes_back_to_the_queue(store: Store, make_job: MakeJob) -> None:
    job = make_job()
    store.jobs.pause(job.id)

    assert store.jobs.resume(job.id).status is Status.QUEUED
    assert messages(store, job)[-2:] == ["Fine-tuning job paused", "Fine-tuning job resumed"]


def test_pausing_a_running_job_asks_its_worker(store: Store, make_job: MakeJob, claim: Callable[..., Lease]) -> None:
    lease = claim(job := make_job())

    assert store.jobs.pause(job.id).status is Status.PAUSING
    assert store.attempts.status(lease) is Status.PAUSING


def test_pausing_again_changes_and_tells_nothing(store: Store, make_job: MakeJob, claim: Callable[..., Lease]) -> None:
    claim(job := make_job())
    store.jobs.pause(job.id)
    told = messages(store, job)

    assert store.jobs.pause(job.id).status is Status.PAUSING
    assert messages(store, job) == told


def test_a_resume_takes_back_a_pause_under_way(store: Store, make_job: MakeJob, claim: Callable[..., Lease]) -> None:
    lease = claim(job := make_job())
    store.jobs.pause(job.id)

    assert store.jobs.resume(job.id).status is Status.RUNNING
    assert not store.attempts.pause(lease, make_state(3))
    assert store.jobs.get(job.id).status is Status.RUNNING


def _ended(store: Store, make_job: MakeJob, status: Status) -> Job:
    job = make_job(Status.VALIDATING_FILES)
    if status is Status.CANCELLED:
        store.jobs.cancel(job.id)
    else:
        store.jobs.fail(job.id, JobError("server_error", "It broke."), Status.VALIDATING_FILES)
    return store.jobs.get(job.id)


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.FAILED])
def test_nothing_moves_an_ended_job(store: Store, make_job: MakeJob, status: Status) -> None:
    job = _ended(store, make_job, status)

    for ask in (store.jobs.pause, store.jobs.resume, store.jobs.cancel):
        with pytest.raises(InvalidJobState, match=f"{job.id}.*'{status}'"):
            ask(job.id)
    assert not store.jobs.mark_valid(job.id)
    assert store.attempts.claim(job.id, "worker-1", 60) is None
    assert store.jobs.get(job.id) == job


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.FAILED])
def test_an_ended_job_says_when_it_ended(store: Store, make_job: MakeJob, status: Status) -> None:
    assert status in FINAL
    assert _ended(store, make_job, status).finished_at is not None


def test_a_failed_job_says_why_in_its_row_and_its_last_event(store: Store, make_job: MakeJob) -> None:
    job = _ended(store, make_job, Status.FAILED)

    assert job.error == JobError("server_error", "It broke.")
    assert messages(store, job)[-1] == "It broke."


def test_cancelling_takes_the_lease_away(store: Store, make_job: MakeJob, claim: Callable[..., Lease]) -> None:
    claim(job := make_job())

    job = store.jobs.cancel(job.id)

    assert (job.worker, job.status) == (None, Status.CANCELLED)
    assert messages(store, job)[-1] == "Fine tuning process stopping due to job cancellation"


def test_pages_go_on_behind_their_cursor_newest_first(store: Store, make_job: MakeJob) -> None:
    jobs = [make_job() for _ in range(3)]

    first, more = store.jobs.list(after=None, limit=2, metadata=None)
    second, no_more = store.jobs.list(after=first[-1].id, limit=2, metadata=None)

    assert [job.id for job in first + second] == [job.id for job in reversed(jobs)]
    assert (more, no_more) == (True, False)


def test_events_page_behind_their_cursor_newest_first(store: Store, make_job: MakeJob) -> None:
    job = make_job()
    pages: list[str] = []
    after: str | None = None
    more = True
    while more:
        events, more = store.jobs.list_events(job.id, after=after, limit=1)
        pages += [event.message for event in events]
        after = events[-1].id

    assert pages == list(reversed(messages(store, job)))


def test_a_cursor_that_never_existed_is_refused(store: Store, make_job: MakeJob) -> None:
    job = make_job()

    with pytest.raises(InvalidRequest, match="ftjob-x"):
        store.jobs.list(after="ftjob-x", limit=1, metadata=None)
    with pytest.raises(InvalidRequest, match="ftevent-x"):
        store.jobs.list_events(job.id, after="ftevent-x", limit=1)


def test_metadata_pairs_must_all_match(store: Store, make_job: MakeJob) -> None:
    both = make_job(metadata={"team": "blue", "it's": '50% "off"'})
    make_job(metadata={"team": "blue"})
    without = make_job()

    def ids(metadata: dict[str, str] | None, *, without_metadata: bool = False) -> list[str]:
        jobs, _ = store.jobs.list(after=None, limit=9, metadata=metadata, without_metadata=without_metadata)
        return [job.id for job in jobs]

    assert ids({"team": "blue", "it's": '50% "off"'}) == [both.id]
    assert len(ids({"team": "blue"})) == 2
    assert ids({"team": "red"}) == []
    assert ids(None, without_metadata=True) == [without.id]


def test_metrics_come_in_the_order_of_steps(store: Store, make_job: MakeJob, claim: Callable[..., Lease]) -> None:
    lease = claim(job := make_job())
    store.attempts.record_steps(lease, 2, [step_telling(1), step_telling(2)], 0)

    assert [data["step"] for data in store.jobs.list_metrics(job.id)] == [1, 2]


def test_of_many_claims_at_once_one_wins(store: Store, make_job: MakeJob) -> None:
    job = make_job()
    ready = threading.Barrier(8)
    claims: list[object] = []

    def claim(worker: str) -> None:
        ready.wait()
        claims.append(store.attempts.claim(job.id, worker, 60))

    threads = [threading.Thread(target=claim, args=(f"worker-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(claims) == 8
    assert sum(claimed is not None for claimed in claims) == 1


@pytest.mark.parametrize("_round", range(10))
def test_of_a_pause_and_a_cancel_at_once_the_events_match_the_end(store: Store, make_job: MakeJob, _round: int) -> None:
    job = make_job()
    ready = threading.Barrier(2)

    def move(ask: Callable[[str], Job]) -> Job:
        ready.wait()
        return ask(job.id)

    with ThreadPoolExecutor(2) as threads:
        pause, cancel = threads.submit(move, store.jobs.pause), threads.submit(move, store.jobs.cancel)

    assert cancel.exception() is None
    assert store.jobs.get(job.id).status is Status.CANCELLED
    cancelled = "Fine tuning process stopping due to job cancellation"
    expected = ["Fine-tuning job paused", cancelled] if pause.exception() is None else [cancelled]
    assert messages(store, job)[3:] == expected


def test_a_reserved_job_is_left_to_its_server_until_the_time_is_over(store: Store, make_job: MakeJob) -> None:
    first, second, third = (make_job().id for _ in range(3))
    assert store.jobs.reserve(2, 60.0, []) == {first: 0, second: 0}
    assert store.jobs.reserve(2, 60.0, []) == {}
    assert store.jobs.reserve(4, 60.0, []) == {third: 0}

    store.jobs.keep_reserved([second], for_s=-1.0)
    assert store.jobs.reserve(3, 60.0, [second]) == {}
    assert store.jobs.reserve(3, 60.0, []) == {second: 0}


def test_a_reservation_ends_with_the_launch_and_with_the_queue(
    store: Store, make_job: MakeJob, claim: Callable[..., Lease]
) -> None:
    jobs = [make_job() for _ in range(3)]
    failed, paused, claimed = (job.id for job in jobs)
    store.jobs.reserve(3, 60.0, [])
    store.recovery.launch_failed(failed, 0, "exit code 1")
    store.jobs.pause(paused)
    store.jobs.resume(paused)
    claim(jobs[2])
    store.recovery.worker_gone("worker-1", "killed")

    assert list(store.jobs.reserve(3, 60.0, [])) == [failed, paused, claimed]


def test_a_reservation_of_a_clock_that_was_ahead_holds_nobody_up(
    store: Store, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, now = make_job(), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_400)
    store.jobs.reserve(1, 5.0, [])
    monkeypatch.setattr(time, "time", lambda: now)

    assert store.jobs.reserve(1, 5.0, []) == {job.id: 0}


def test_jobs_with_workers_leave_no_room(store: Store, make_job: MakeJob, claim: Callable[..., Lease]) -> None:
    claim(make_job())
    waiting = make_job().id

    assert store.jobs.reserve(1, 60.0, []) == {}
    assert store.jobs.reserve(0, 60.0, []) == store.jobs.reserve(-1, 60.0, []) == {}
    assert store.jobs.reserve(2, 60.0, []) == {waiting: 0}


def test_the_base_in_demand_is_that_of_the_next_job_else_of_the_newest(
    store: Store, make_job: MakeJob, claim: Callable[..., Lease]
) -> None:
    assert store.jobs.base_in_demand() is None

    first, second = make_job(base="first"), make_job(base="second")
    make_job(Status.VALIDATING_FILES, base="third")
    assert store.jobs.base_in_demand() == "first"
    claim(first)
    assert store.jobs.base_in_demand() == "second"
    claim(second)
    assert store.jobs.base_in_demand() == "third"
