from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from caesura.jobs import Lease, Reason, Status
from caesura.storage import Blob
from caesura.store import Store
from tests.store.conftest import MakeJob, make_state, messages, step_telling

Claim = Callable[..., Lease]


def test_the_job_of_a_dead_worker_waits_again_and_says_from_where(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    lease = claim(job := make_job(), "worker-1")
    store.attempts.save(lease, make_state(3))
    store.recovery.worker_gone("worker-1", "killed by SIGKILL")

    assert store.jobs.get(job.id).status is Status.QUEUED
    assert messages(store, job)[-1] == (
        "The worker stopped unexpectedly (killed by SIGKILL); the job resumes from step 3"
    )


def test_the_death_of_a_worker_without_a_job_changes_nothing(store: Store, make_job: MakeJob, claim: Claim) -> None:
    claim(job := make_job(), "worker-1")
    before = store.jobs.get(job.id)
    store.recovery.worker_gone("worker-2", "exit code 0")

    assert store.jobs.get(job.id) == before


def test_a_lease_that_ran_out_is_mended_and_a_live_one_is_not(store: Store, make_job: MakeJob, claim: Claim) -> None:
    dead, alive = make_job(), make_job()
    claim(dead, "worker-1", lease_s=-1.0)
    claim(alive, "worker-2", lease_s=60.0)
    store.recovery.expire_leases()

    assert store.jobs.get(dead.id).status is Status.QUEUED
    assert store.jobs.get(alive.id).status is Status.RUNNING


def test_a_worker_that_dies_while_pausing_leaves_a_paused_job_with_the_last_states_checkpoint(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    lease = claim(job := make_job(), "worker-1")
    store.attempts.record_steps(lease, 5, [step_telling(5, loss=0.25)], 0)
    store.attempts.save(lease, make_state(5))
    store.jobs.pause(job.id)
    store.recovery.worker_gone("worker-1", "killed by SIGKILL")

    assert store.jobs.get(job.id).status is Status.PAUSED
    model = store.models.find(job.checkpoint_name(5))
    assert model is not None
    assert (model.reason, model.metrics["train_loss"]) == (Reason.PAUSE, 0.25)


def test_the_third_attempt_without_a_new_step_fails_the_job_and_names_the_cause(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    job = make_job()
    for number in range(3):
        claim(job, f"worker-{number}")
        store.recovery.worker_gone(f"worker-{number}", "killed by SIGSEGV")

    failed = store.jobs.get(job.id)
    assert failed.status is Status.FAILED
    assert failed.error is not None
    assert "SIGSEGV" in failed.error.message


def test_an_attempt_that_makes_progress_starts_the_count_anew(store: Store, make_job: MakeJob, claim: Claim) -> None:
    job = make_job()
    for number in range(6):
        lease = claim(job, f"worker-{number}")
        store.attempts.record_steps(lease, number + 1, [step_telling(number + 1)], 0)
        store.recovery.worker_gone(f"worker-{number}", "killed by SIGKILL")

    assert store.jobs.get(job.id).status is Status.QUEUED


def test_workers_that_never_claim_fail_the_job_at_the_third(store: Store, make_job: MakeJob) -> None:
    job = make_job()
    statuses: list[Status] = []
    for _ in range(3):
        store.recovery.launch_failed(job.id, job.attempt, "exit code 1")
        statuses.append(store.jobs.get(job.id).status)

    assert statuses == [Status.QUEUED, Status.QUEUED, Status.FAILED]


def test_every_blob_that_a_row_names_is_referenced(store: Store, make_job: MakeJob, claim: Claim) -> None:
    job = make_job(validation_file="file-2", validation_blob="files/2")
    lease = claim(job)
    store.attempts.save(lease, make_state(1), Reason.EPOCH)
    referenced = store.recovery.referenced_blobs()

    assert referenced == {
        "files/1",
        "files/2",
        "adapters/a1/adapter_model.safetensors",
        "optimizers/a1/optimizer.safetensors",
    }


def test_an_expired_file_is_referenced_as_long_as_its_job_has_not_ended(
    store: Store, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = store.files.create(Blob("files/1", 1, "00"), "a.jsonl", "fine-tune", 3600)
    job = make_job(training_file=file.id, training_blob=file.blob)
    in_time = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: in_time)
    store.files.expire()

    assert store.recovery.referenced_blobs() == {"files/1"}
    store.jobs.cancel(job.id)
    assert store.recovery.referenced_blobs() == set()


@pytest.mark.parametrize("end", ["cancel", "keep"])
def test_a_deleted_file_is_referenced_as_long_as_its_job_has_not_ended(
    store: Store, make_job: MakeJob, end: str
) -> None:
    job = make_job()
    if end == "cancel":
        store.jobs.cancel(job.id)

    assert ("files/1" in store.recovery.referenced_blobs()) == (end == "keep")


def test_a_worker_that_claims_and_dies_at_once_is_counted_once(store: Store, make_job: MakeJob, claim: Claim) -> None:
    job = make_job()
    claim(job, "worker-1")
    store.recovery.worker_gone("worker-1", "killed by SIGSEGV")
    store.recovery.launch_failed(job.id, job.attempt, "killed by SIGSEGV")

    assert store.jobs.get(job.id).stalled_attempts == 1
