"""One small job, disturbed somewhere, mended as the scheduler would, run to its end, and compared."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from caesura.executors import describe_exit
from caesura.jobs import FINAL, Job, Status
from caesura.scheduler import sweep
from caesura.settings import Settings
from tests.failure.points import nursery
from tests.failure.points.changes import look_often, sample_in_small_units
from tests.failure.points.nursery import Orders
from tests.worker.disturb import REINFORCEMENT, to_prompts
from tests.world import Outcome, World, example_rows, wait_until

#: 12 rows in batches of 4, two epochs; a checkpoint after step 3.
STEPS_PER_EPOCH, NUM_STEPS = 3, 6
NUM_ROWS, NUM_VALIDATED = 12, 4
EXAMPLES_OF = {"supervised": "style", "dpo": "preference", "reinforcement": "style"}
FEW_ANSWERS: dict[str, Any] = {
    "compute_multiplier": 0.5,
    "max_completion_tokens": 16,
    "eval_interval": 2,
    "eval_samples": 1,
    "updates_per_batch": 2,
    "kl_coefficient": 0.1,
}
#: More attempts than any one disturbance needs.
MAX_ATTEMPTS = 4


def make_settings(folder: Path, micro_model: Path, **values: Any) -> Settings:
    given: dict[str, Any] = {
        "models": {"micro": {"path": str(micro_model)}},
        "threads": 1,
        "device": "cpu",
        "dtype": "float32",
        "save_interval_s": 3600.0,
        "lease_s": 60.0,
        "port": 0,
    }
    return Settings(data_dir=folder, **(given | values))


@dataclass
class Bench:
    """A data folder and the workers on it."""

    world: World
    folder: Path
    method: str = "supervised"
    num_workers: int = 0
    children: list[BaseProcess] = field(default_factory=list[BaseProcess])

    def create_job(self) -> Job:
        training, validation = self.rows()
        values: dict[str, Any] = {} if self.method != "reinforcement" else {"body": REINFORCEMENT, **FEW_ANSWERS}
        return self.world.create_job(
            training, validation, method=self.method, batch_size=4, n_epochs=2, learning_rate_multiplier=3.0, **values
        )

    def rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        name = EXAMPLES_OF[self.method]
        training = example_rows(f"{name}_train.jsonl")[:NUM_ROWS]
        validation = example_rows(f"{name}_validation.jsonl")[:NUM_VALIDATED]
        if self.method == "reinforcement":
            return to_prompts(training), to_prompts(validation)
        return training, validation

    @property
    def worker(self) -> str:
        """The name of the worker that was started last."""
        return f"worker-{self.num_workers}"

    def start(self, job: Job, fault: str = "", *before: Callable[[], None]) -> BaseProcess:
        self.num_workers += 1
        if self.method == "reinforcement":
            before = (sample_in_small_units, *before)
        orders = Orders(self.world.settings, self.folder / f"{self.worker}.log", fault, (look_often, *before))
        self.children.append(nursery.start(nursery.attempt, orders, job.id, self.worker))
        return self.children[-1]

    def run(self, job: Job, fault: str = "", *before: Callable[[], None]) -> int:
        """Make an attempt in a child; its exit code, negative for a signal's number."""
        process = self.start(job, fault, *before)
        process.join(120)
        assert process.exitcode is not None, self.log()
        return process.exitcode

    def log(self) -> str:
        return (self.folder / f"{self.worker}.log").read_text()

    def mend(self, exit_code: int) -> None:
        """What the scheduler does for a worker that has ended; and its sweep, which spares nothing that is young."""
        self.world.store.recovery.worker_gone(self.worker, describe_exit(exit_code))
        self.sweep()

    def sweep(self) -> None:
        """Raises AssertionError where a blob that a row names is not there after it."""
        sweep_without_grace(self.world)

    def finish(self, job: Job) -> None:
        """Further attempts, until the job has ended."""
        for _ in range(MAX_ATTEMPTS):
            status = self.world.store.jobs.get(job.id).status
            if status in FINAL:
                return
            if status is Status.PAUSED:
                self.world.store.jobs.resume(job.id)
            self.mend(self.run(job))
        raise AssertionError(f"not ended after {MAX_ATTEMPTS} attempts: {self.world.store.jobs.get(job.id)}")

    def check_steps(self, job: Job) -> None:
        """Every step was told once, and in its order."""
        told = [data["step"] for data in self.world.store.jobs.list_metrics(job.id)]
        assert told == list(range(1, NUM_STEPS + 1))

    def close(self) -> None:
        for process in self.children:
            if process.is_alive():
                process.kill()
            process.join()
        self.world.close()


def sweep_without_grace(world: World) -> None:
    sweep(world.store, world.storage, grace_s=-1e9)
    there = {key for key, _ in world.storage.list()}
    assert there == world.store.recovery.referenced_blobs()


def wait_until_stopped(process: BaseProcess) -> None:
    assert process.pid is not None
    handle = psutil.Process(process.pid)
    wait_until(lambda: handle.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE), "the worker to be stopped")
    assert handle.status() == psutil.STATUS_STOPPED


def stop_outside_a_transaction(process: BaseProcess, world: World) -> None:
    """It stopped at its point; where another of its threads has the database's lock it goes on a little."""
    wait_until_stopped(process)
    assert process.pid is not None
    while _is_locked(world):
        os.kill(process.pid, signal.SIGCONT)
        wait_until(lambda: not _is_locked(world), "the worker's transaction to end")
        os.kill(process.pid, signal.SIGSTOP)
        wait_until_stopped(process)


def _is_locked(world: World) -> bool:
    with closing(sqlite3.connect(world.settings.data_dir / "caesura.db", timeout=0, isolation_level=None)) as database:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
    return False


def describe(exit_code: int) -> str:
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"


OutcomeOf = Callable[[str], Outcome]
