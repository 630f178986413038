from __future__ import annotations

from collections.abc import Callable

import pytest

from caesura.errors import NotFound
from caesura.jobs import ACTIVE, FINAL, File, Job, JobError, Lease, Reason, Status
from caesura.store import Store
from tests.store.conftest import MakeJob, make_state

Claim = Callable[..., Lease]
ADAPTER = "adapters/a1/adapter_model.safetensors"
OPTIMIZER = "optimizers/a1/optimizer.safetensors"


@pytest.fixture
def first(store: Store, make_job: MakeJob, claim: Claim) -> tuple[Job, Lease]:
    """A running job with a checkpoint at step 1, whose adapter is that of the training state there."""
    job = make_job()
    lease = claim(job)
    store.attempts.save(lease, make_state(1), Reason.EPOCH)
    return job, lease


def start_from(store: Store, make_job: MakeJob, name: str, status: Status = Status.QUEUED) -> Job:
    model = store.models.find(name)
    assert model is not None
    return make_job(status, start_model=name, start_adapter=model.adapter)


def bring_to(store: Store, make_job: MakeJob, claim: Claim, name: str, status: Status) -> None:
    """Make a job that starts from the model `name` and is in `status`."""
    waiting = Status.VALIDATING_FILES if status is Status.VALIDATING_FILES else Status.QUEUED
    job = start_from(store, make_job, name, waiting)
    lease = None
    if status in ACTIVE or status is Status.SUCCEEDED:
        lease = claim(job, "worker-2")
    if status in (Status.PAUSING, Status.PAUSED):
        store.jobs.pause(job.id)
    if status is Status.CANCELLED:
        store.jobs.cancel(job.id)
    if status is Status.FAILED:
        store.jobs.fail(job.id, JobError("server_error", "It broke."), Status.QUEUED)
    if status is Status.SUCCEEDED:
        assert lease is not None
        results = File("file-results", 1, 1, "step_metrics.csv", "fine-tune-results", "files/results", "00")
        store.attempts.finish(lease, 1, make_state(1, "b").adapter, [results], trained_tokens=1)
    assert store.jobs.get(job.id).status is status


def test_a_job_reads_back_what_it_starts_from(store: Store, make_job: MakeJob, first: tuple[Job, Lease]) -> None:
    name = first[0].checkpoint_name(1)
    job = start_from(store, make_job, name)

    assert (job.start_model, job.start_adapter) == (name, make_state(1).adapter)
    (listed, _), _ = store.jobs.list(after=None, limit=2, metadata=None)
    assert listed == job
    assert (first[0].start_model, first[0].start_adapter) == (None, None)


@pytest.mark.parametrize("was_there", [True, False])
def test_a_model_that_is_not_there_starts_no_job(
    store: Store, make_job: MakeJob, first: tuple[Job, Lease], was_there: bool
) -> None:
    name = first[0].checkpoint_name(1 if was_there else 2)
    if was_there:
        store.models.delete(name)

    with pytest.raises(NotFound, match=f"The model '{name}' does not exist"):
        make_job(start_model=name, start_adapter=make_state(1).adapter)
    jobs, _ = store.jobs.list(after=None, limit=9, metadata=None)
    assert [job.id for job in jobs] == [first[0].id]


def test_starting_from_a_model_leaves_the_model_as_it_is(
    store: Store, make_job: MakeJob, first: tuple[Job, Lease]
) -> None:
    before = store.models.find(first[0].checkpoint_name(1))
    start_from(store, make_job, first[0].checkpoint_name(1))

    assert store.models.find(first[0].checkpoint_name(1)) == before


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("is_deleted", [True, False])
def test_the_adapter_stays_when_its_training_state_goes_until_the_job_has_ended(
    store: Store, make_job: MakeJob, claim: Claim, first: tuple[Job, Lease], status: Status, is_deleted: bool
) -> None:
    name, lease = first[0].checkpoint_name(1), first[1]
    bring_to(store, make_job, claim, name, status)
    if is_deleted:
        store.models.delete(name)
    store.attempts.save(lease, make_state(2))
    freed = store.attempts.save(lease, make_state(3))

    is_free = is_deleted and status in FINAL
    assert freed == ([ADAPTER, OPTIMIZER] if is_free else [OPTIMIZER])
    assert (ADAPTER in store.recovery.referenced_blobs()) is not is_free
    assert OPTIMIZER not in store.recovery.referenced_blobs()


@pytest.mark.parametrize("status", Status)
def test_the_adapter_of_a_deleted_model_stays_until_the_job_has_ended(
    store: Store, make_job: MakeJob, claim: Claim, first: tuple[Job, Lease], status: Status
) -> None:
    """Nothing but the job that started from it names the adapter: the job that made it is over."""
    bring_to(store, make_job, claim, first[0].checkpoint_name(1), status)
    store.jobs.cancel(first[0].id)
    store.models.delete(first[0].checkpoint_name(1))

    assert (ADAPTER in store.recovery.referenced_blobs()) == (status not in FINAL)


def test_of_two_jobs_that_start_from_one_model_the_last_keeps_its_adapter(
    store: Store, make_job: MakeJob, first: tuple[Job, Lease]
) -> None:
    one, other = (start_from(store, make_job, first[0].checkpoint_name(1)) for _ in range(2))
    store.jobs.cancel(first[0].id)
    store.models.delete(first[0].checkpoint_name(1))
    store.jobs.cancel(one.id)
    was_kept = ADAPTER in store.recovery.referenced_blobs()
    store.jobs.cancel(other.id)

    assert was_kept
    assert ADAPTER not in store.recovery.referenced_blobs()


def test_a_pruned_checkpoint_stays_for_the_job_that_starts_from_it(
    store: Store, make_job: MakeJob, first: tuple[Job, Lease]
) -> None:
    job, lease = first
    start_from(store, make_job, job.checkpoint_name(1))
    freed = [key for step in (2, 3, 4) for key in store.attempts.save(lease, make_state(step), Reason.EPOCH)]

    assert store.models.find(job.checkpoint_name(1)) is None
    assert OPTIMIZER in freed
    assert ADAPTER not in freed
    assert ADAPTER in store.recovery.referenced_blobs()
