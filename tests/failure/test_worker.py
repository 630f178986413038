"""Workers as processes of their own, disturbed by signals."""

from __future__ import annotations

import signal
from collections.abc import Callable

import psutil
import pytest

from caesura.jobs import Status
from tests.failure.conftest import NUM_STEPS, create_job
from tests.world import Outcome, World, wait_until


@pytest.mark.parametrize(("method", "step"), [("supervised", 4), ("dpo", 13)])
def test_a_job_whose_worker_was_killed_ends_in_the_bytes_of_an_undisturbed_one(
    world: World, undisturbed_of: Callable[[str], Outcome], method: str, step: int
) -> None:
    job = create_job(world, method)
    worker = world.start_worker(job, "worker-1")
    wait_until(lambda: world.store.jobs.get(job.id).status is Status.RUNNING, "the claim")
    wait_until(lambda: world.store.jobs.get(job.id).step >= step, f"step {step}")
    worker.kill()
    assert worker.wait() == -signal.SIGKILL
    assert world.store.jobs.get(job.id).status is Status.RUNNING

    world.store.recovery.worker_gone("worker-1", "killed by SIGKILL")
    assert world.start_worker(job, "worker-2").wait() == 0

    assert world.outcome(job) == undisturbed_of(method)


def test_a_worker_that_slept_past_its_lease_cannot_change_the_job_when_it_wakes(
    world: World, undisturbed: Outcome
) -> None:
    job = create_job(world)
    sleeper = world.start_worker(job, "worker-1")
    wait_until(lambda: world.store.jobs.get(job.id).step >= 3, "step 3")
    with world.store.database.write():  # so that it is not stopped while it holds the database's own lock
        sleeper.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_STOPPED, "the worker to be stopped")

    def expired() -> bool:
        world.store.recovery.expire_leases()
        return world.store.jobs.get(job.id).status is Status.QUEUED

    wait_until(expired, "the lease to run out")
    assert world.start_worker(job, "worker-2").wait() == 0
    ended = world.store.jobs.get(job.id), world.messages(job), world.store.models.list()
    assert world.outcome(job) == undisturbed

    sleeper.send_signal(signal.SIGCONT)
    assert sleeper.wait() == 0

    assert (world.store.jobs.get(job.id), world.messages(job), world.store.models.list()) == ended
    assert [metrics["step"] for metrics in world.store.jobs.list_metrics(job.id)] == list(range(1, NUM_STEPS + 1))


def test_a_worker_that_is_asked_to_end_gives_its_job_back(world: World, undisturbed: Outcome) -> None:
    job = create_job(world)
    worker = world.start_worker(job, "worker-1")
    wait_until(lambda: world.store.jobs.get(job.id).step >= 3, "step 3")
    worker.terminate()
    assert worker.wait() == 0
    assert world.store.jobs.get(job.id).status is Status.QUEUED

    assert world.start_worker(job, "worker-2").wait() == 0

    assert world.outcome(job) == undisturbed
