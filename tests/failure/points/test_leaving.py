"""A job is paused, given back, stopped past its lease, resumed: at every place, and with a fault on the way."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from caesura.jobs import Status
from tests.failure.points.changes import PauseAfter
from tests.failure.points.conftest import MakeBench, Survived
from tests.failure.points.harness import (
    NUM_STEPS,
    STEPS_PER_EPOCH,
    stop_outside_a_transaction,
    wait_until_stopped,
)
from tests.world import wait_until

METHODS = ("supervised", "dpo", "reinforcement")
#: A pause in the last step is overtaken by the job's end.
BOUNDARIES = [("supervised", step) for step in range(1, NUM_STEPS)] + [("dpo", 2), ("reinforcement", 3)]


@pytest.mark.parametrize(("method", "step"), BOUNDARIES)
def test_a_job_paused_and_resumed(make_bench: MakeBench, survived: Survived, method: str, step: int) -> None:
    bench = make_bench(method)
    job = bench.create_job()
    assert bench.run(job, "", PauseAfter(step)) == 0
    paused = bench.world.store.jobs.get(job.id)
    assert (paused.status, paused.step) == (Status.PAUSED, step)
    bench.sweep()
    bench.finish(job)

    survived(bench, job, f"step boundary {step}", "pause, resume")


@pytest.mark.parametrize("step", range(1, NUM_STEPS))
def test_a_job_given_back(make_bench: MakeBench, survived: Survived, step: int) -> None:
    bench = make_bench()
    job = bench.create_job()
    assert bench.run(job, f"step.recorded:term:{step}") == 0
    assert bench.world.store.jobs.get(job.id).status is Status.QUEUED
    assert bench.world.store.jobs.list_states(job.id)[0].step == step
    bench.sweep()
    bench.finish(job)

    survived(bench, job, f"step boundary {step}", "SIGTERM, next start")


@pytest.mark.parametrize("point", ["pause.heard", "save.half", "pause.stored", "paused"])
def test_a_worker_killed_while_it_pauses(make_bench: MakeBench, survived: Survived, point: str) -> None:
    bench = make_bench()
    job = bench.create_job()
    fault = "blob.linked:kill:3" if point == "save.half" else f"{point}:kill"
    assert bench.run(job, fault, PauseAfter(2)) == -signal.SIGKILL
    bench.mend(-signal.SIGKILL)
    assert bench.world.store.jobs.get(job.id).status is Status.PAUSED
    bench.finish(job)

    survived(bench, job, f"{point} (of a pause)", "SIGKILL, resume")


@pytest.mark.parametrize("point", ["stop.heard", "stop.stored", "released"])
def test_a_worker_killed_while_it_gives_its_job_back(make_bench: MakeBench, survived: Survived, point: str) -> None:
    bench = make_bench()
    job = bench.create_job()
    assert bench.run(job, f"step.recorded:term:2,{point}:kill") == -signal.SIGKILL
    bench.mend(-signal.SIGKILL)
    assert bench.world.store.jobs.get(job.id).status is Status.QUEUED
    bench.finish(job)

    survived(bench, job, point, "SIGTERM, SIGKILL")


@pytest.mark.parametrize(
    ("method", "point"),
    [*[("supervised", point) for point in ("state.half_read", "restored", "step.begun")], ("dpo", "restored")],
)
def test_a_worker_killed_while_it_takes_up_a_state(
    make_bench: MakeBench, survived: Survived, method: str, point: str
) -> None:
    bench = make_bench(method)
    job = bench.create_job()
    assert bench.run(job, "step.recorded:term:2") == 0
    assert bench.run(job, f"{point}:kill") == -signal.SIGKILL
    bench.mend(-signal.SIGKILL)
    bench.finish(job)

    survived(bench, job, f"{point} (of a resume)", "SIGKILL")


@pytest.mark.parametrize("point", ["save.begun", "save.half", "save.stored", "save.committed", "save.ended"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_worker_killed_while_it_saves_in_passing(
    make_bench: MakeBench, survived: Survived, point: str, at: int
) -> None:
    bench = make_bench(save_interval_s=1e-6)
    job = bench.create_job()
    assert bench.run(job, f"{point}:kill:{at}") == -signal.SIGKILL, bench.log()
    bench.mend(-signal.SIGKILL)
    bench.finish(job)

    survived(bench, job, f"{point}:{at} (in passing)", "SIGKILL")


@pytest.mark.parametrize("point", ["renewing", "renewed"])
def test_a_worker_killed_while_it_renews_its_lease(make_bench: MakeBench, survived: Survived, point: str) -> None:
    bench = make_bench(lease_s=0.003)
    job = bench.create_job()
    assert bench.run(job, f"{point}:kill:2") == -signal.SIGKILL
    bench.mend(-signal.SIGKILL)
    bench.finish(job)

    survived(bench, job, point, "SIGKILL")


@pytest.mark.parametrize(
    ("method", "at"),
    [
        *[("supervised", at) for at in ("claimed:1", "step.applied:3", "blob.half:2", "save.stored:1")],
        *[("supervised", at) for at in ("model.stored:1", "results.stored:1")],
        *[("dpo", "reference.asked:2"), ("reinforcement", "sampling:2"), ("reinforcement", "grading:1")],
    ],
)
def test_a_worker_stopped_past_its_lease(make_bench: MakeBench, survived: Survived, method: str, at: str) -> None:
    bench = make_bench(method, lease_s=0.5)
    job = bench.create_job()
    name, number = at.split(":")
    sleeper = bench.start(job, f"{name}:stop:{number}")
    stop_outside_a_transaction(sleeper, bench.world)

    def expired() -> bool:
        bench.world.store.recovery.expire_leases()
        return bench.world.store.jobs.get(job.id).status is Status.QUEUED

    wait_until(expired, "the lease to run out")
    bench.finish(job)
    ended = bench.world.store.jobs.get(job.id), bench.world.messages(job), bench.world.store.models.list()

    assert sleeper.pid is not None
    os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.join(60)
    assert sleeper.exitcode == 0, bench.log()
    assert ended == (bench.world.store.jobs.get(job.id), bench.world.messages(job), bench.world.store.models.list())
    survived(bench, job, at, "SIGSTOP past the lease, SIGCONT after the end")


def test_a_worker_stopped_within_a_transaction_holds_up_the_others_until_it_goes_on(
    make_bench: MakeBench, survived: Survived
) -> None:
    bench = make_bench(lease_s=0.5)
    job = bench.create_job()
    sleeper = bench.start(job, "rows.written:stop:4")
    wait_until_stopped(sleeper)
    mending = threading.Thread(target=bench.world.store.recovery.expire_leases)
    mending.start()
    mending.join(1.5)
    assert sleeper.pid is not None
    os.kill(sleeper.pid, signal.SIGCONT)
    mending.join()
    sleeper.join(60)
    bench.finish(job)

    survived(bench, job, "rows.written:4", "SIGSTOP with the database's lock, SIGCONT")


def test_steps_per_epoch_is_what_the_cases_say(make_bench: MakeBench) -> None:
    bench = make_bench()
    job = bench.create_job()
    assert bench.run(job) == 0
    assert {model.step for model in bench.world.store.models.list()} == {NUM_STEPS, STEPS_PER_EPOCH}
