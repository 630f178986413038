"""The disk is full or read-only, blobs are damaged, the database is locked, memory is short, a loss is no number."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from pathlib import Path

import pytest

from caesura.jobs import Status
from tests.failure.points.changes import ask_for_too_much, lose_the_loss
from tests.failure.points.conftest import MakeBench, Survived
from tests.failure.points.harness import Bench, wait_until_stopped
from tests.world import wait_until

KINDS = ("blob.opened", "blob.half", "blob.written", "blob.synced", "blob.linked", "blob.durable")
#: Which blob of a job: the first of its checkpoint, one of its optimizer, one of its model, its results.
BLOBS = (1, 3, 6, 8)


@pytest.mark.parametrize(
    "fault",
    [f"{kind}:full:{BLOBS[number % len(BLOBS)]}" for number, kind in enumerate(KINDS)]
    + [f"blob.half:full:{at}" for at in (1, 3, 8)]
    + [f"{kind}:readonly:{at}" for kind, at in (("blob.opened", 1), ("blob.opened", 8), ("blob.linked", 7))],
)
def test_a_blob_that_the_disk_refuses_is_written_again(bench: Bench, survived: Survived, fault: str) -> None:
    job = bench.create_job()
    assert bench.run(job, fault) == 0, bench.log()
    assert bench.world.store.jobs.get(job.id).attempt == 1

    point, deed, at = fault.split(":")
    survived(bench, job, f"{point}:{at}", {"full": "disk full for a moment", "readonly": "read-only"}[deed])


@pytest.mark.parametrize("at", [1, 3])
def test_a_save_in_passing_that_the_disk_refuses(make_bench: MakeBench, survived: Survived, at: int) -> None:
    bench = make_bench(save_interval_s=1e-6)
    job = bench.create_job()
    assert bench.run(job, f"blob.half:full:{at}") == 0, bench.log()

    survived(bench, job, f"blob.half:{at} (in passing)", "disk full for a moment")


def fill(folder: Path) -> Path:
    """Take what is left of the disk; the file that holds it."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as ballast:
        for size in (2**16, 1):
            try:
                while ballast.write(bytes(size)):
                    pass
            except OSError:
                continue
    return path


@pytest.mark.parametrize("at", ["plan.recorded:1", "step.recorded:3", "checkpoint.made:1", "step.recorded:6"])
def test_a_disk_that_is_full_for_a_while(make_bench: MakeBench, small_disk: Path, survived: Survived, at: str) -> None:
    bench = make_bench(folder=small_disk, save_interval_s=1e-6)
    job = bench.create_job()
    name, number = at.split(":")
    worker = bench.start(job, f"{name}:stop:{number}")
    wait_until_stopped(worker)
    ballast = fill(small_disk)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGCONT)
    wait_until(lambda: "nothing can be written" in bench.log() or not worker.is_alive(), "the worker to wait")
    assert worker.is_alive(), bench.log()
    ballast.unlink()
    worker.join(60)
    assert worker.exitcode == 0, bench.log()
    assert bench.world.store.jobs.get(job.id).attempt == 1

    survived(bench, job, at, "a file system without a free byte, for a while")


DAMAGES = ("truncated", "bit-flipped", "deleted")


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def state_blobs(bench: Bench, state: int, job_id: str) -> list[Path]:
    """The blobs of the job's newest training state, or of the one before it."""
    saved = bench.world.store.jobs.list_states(job_id)[state]
    keys = [*saved.adapter.blobs(), *saved.optimizer.blobs()]
    return [bench.world.settings.data_dir / "blobs" / key for key in keys]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("number", range(4))
def test_a_damaged_state_gives_way_to_the_one_before(bench: Bench, survived: Survived, how: str, number: int) -> None:
    job = bench.create_job()
    for at in (2, 3):  # after steps 2 and 5: each attempt counts its own
        assert bench.run(job, f"step.recorded:term:{at}") == 0
    path = state_blobs(bench, 0, job.id)[number]
    newest = bench.world.store.jobs.list_states(job.id)[0].step
    damage(path, how)
    bench.finish(job)

    assert any(f"saved at step {newest} is damaged" in message for message in bench.world.messages(job))
    survived(bench, job, f"a state's {path.name}", how)


@pytest.mark.parametrize("how", DAMAGES)
def test_when_both_states_are_damaged_the_job_starts_anew(bench: Bench, survived: Survived, how: str) -> None:
    job = bench.create_job()
    for _ in range(2):
        assert bench.run(job, "step.recorded:term:2") == 0
    paths = [state_blobs(bench, state, job.id)[2] for state in (0, 1)]  # an adapter may be a checkpoint's as well
    for path in paths:
        damage(path, how)
    bench.finish(job)

    assert sum("is damaged" in message for message in bench.world.messages(job)) == 2
    survived(bench, job, "both states", how)


def lock(database: sqlite3.Connection) -> bool:
    try:
        database.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        return False
    return True


@pytest.mark.parametrize("hold_s", [1.0, 30.0])
def test_a_database_locked_by_another_process(make_bench: MakeBench, survived: Survived, hold_s: float) -> None:
    bench = make_bench(lease_s=2.0)
    job = bench.create_job()
    worker = bench.start(job, "step.recorded:stop:2")
    wait_until_stopped(worker)
    assert worker.pid is not None
    path = bench.world.settings.data_dir / "caesura.db"
    other = sqlite3.connect(path, timeout=0.2, isolation_level=None, check_same_thread=False)
    while not lock(other):  # the worker was stopped in the middle of a transaction of its keeper's
        os.kill(worker.pid, signal.SIGCONT)
        os.kill(worker.pid, signal.SIGSTOP)
        wait_until_stopped(worker)
    freed = threading.Timer(hold_s, lambda: other.execute("ROLLBACK"))
    freed.start()
    os.kill(worker.pid, signal.SIGCONT)
    while freed.is_alive():
        bench.world.store.recovery.expire_leases()
        freed.join(0.05)
    freed.join()
    other.close()
    worker.join(60)
    assert worker.exitcode == 0, bench.log()
    assert bench.world.store.jobs.get(job.id).attempt == 1

    survived(bench, job, "step.recorded:2", f"database locked for {hold_s:.0f} s")


def test_a_loss_that_is_no_number_fails_the_job_with_the_step_and_the_setting(bench: Bench) -> None:
    job = bench.create_job()
    assert bench.run(job, "", lose_the_loss) == 0
    error = bench.world.store.jobs.get(job.id).error

    assert error is not None
    assert error.code == "not_finite"
    assert "up to step 3 (lines " in error.message
    assert "learning_rate_multiplier" in error.message
    bench.sweep()


@pytest.mark.parametrize("at", ["forward:2", "gradients.made:4", "base.loaded:1"])
def test_memory_that_is_short_for_a_moment(bench: Bench, survived: Survived, at: str) -> None:
    job = bench.create_job()
    name, number = at.split(":")
    assert bench.run(job, f"{name}:oom:{number}") == 1
    bench.mend(1)
    assert any("fit into this machine's memory" in message for message in bench.world.messages(job))
    bench.finish(job)

    survived(bench, job, at, "out of memory, once")


def test_a_step_that_never_fits_fails_the_job_with_the_setting_that_helps(bench: Bench) -> None:
    job = bench.create_job()
    codes = []
    for _ in range(3):
        codes.append(bench.run(job, "", ask_for_too_much))
        bench.mend(codes[-1])
    ended = bench.world.store.jobs.get(job.id)

    assert (codes, ended.status) == ([1, 1, 0], Status.FAILED)
    assert ended.error is not None
    assert ended.error.code == "out_of_memory"
    assert "Step 1 does not fit" in ended.error.message
    assert "Lower micro_batch_tokens, or the model's context_window" in ended.error.message
    assert str(bench.folder) not in ended.error.message


def test_what_fails_while_it_fails_still_fails(bench: Bench) -> None:
    for point in ("failing", "failed"):
        job = bench.create_job()
        assert bench.run(job, f"{point}:kill", lose_the_loss) == -signal.SIGKILL
        bench.mend(-signal.SIGKILL)
        if point == "failing":
            assert bench.world.store.jobs.get(job.id).status is Status.QUEUED
            assert bench.run(job, "", lose_the_loss) == 0
        assert bench.world.store.jobs.get(job.id).status is Status.FAILED
        bench.sweep()
