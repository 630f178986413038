"""Workers and servers as processes of their own that start in a moment: forked from a process that has imported all.

What kills them, stops them or fills their disk is real. Their memory is a copy, so a test may change in them what it
likes before they begin.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from caesura import app, cli, faults
from caesura.executors import WorkerExit, describe_exit
from caesura.ids import random_text
from caesura.logging import configure
from caesura.settings import Settings
from caesura.storage import LocalStorage
from caesura.store import open_store
from caesura.worker.attempt import run_attempt

#: Forks from a process that has imported what `warm` does, and that has no thread.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.failure.points.warm"])


@dataclass(frozen=True)
class Orders:
    """What a child works with. `fault` arms it; All of `before` is called in it first."""

    settings: Settings
    log_file: Path
    fault: str = ""
    before: tuple[Callable[[], None], ...] = ()

    def take(self) -> None:
        descriptor = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)
        torch.set_num_threads(1)
        faults.arm(self.fault)
        for change in self.before:
            change()


def start(target: Callable[..., None], *arguments: object) -> BaseProcess:
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def attempt(orders: Orders, job_id: str, worker: str) -> None:
    """What `python -m caesura.worker JOB --name WORKER` does."""
    orders.take()
    configure("info", worker)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda _signal, _frame: stopping.set())
    store = open_store(orders.settings.data_dir)
    storage = LocalStorage(orders.settings.data_dir / "blobs")
    run_attempt(job_id, worker, orders.settings, store, storage, stopping)
    store.close()


def serve(orders: Orders) -> None:
    """What `caesura serve` does, but that its workers are forked too."""
    orders.take()
    os.environ.update(orders.settings.to_environment())
    os.environ["CAESURA_API_KEY"] = KEY
    app.LocalExecutor = ForkingExecutor  # type: ignore[misc, assignment]
    sys.argv = ["caesura", "serve"]
    cli.main()


KEY = "sk-test-key-of-the-fault-points"


@dataclass
class ForkingExecutor:
    """An executor: its workers are not armed, and go on when the server is killed."""

    settings: Settings
    on_exit: Callable[[], None]
    _workers: list[tuple[str, str, BaseProcess]] = field(default_factory=list[tuple[str, str, BaseProcess]])

    def start(self, job_id: str) -> str:
        name = f"worker-{random_text(12)}"
        orders = Orders(self.settings, self.settings.data_dir.with_name("workers.log"))
        process = start(attempt, orders, job_id, name)
        threading.Thread(target=self._await_exit, args=(process.sentinel,), daemon=True).start()
        self._workers.append((name, job_id, process))
        return name

    def tick(self) -> list[WorkerExit]:
        ended = [worker for worker in self._workers if worker[2].exitcode is not None]
        self._workers = [worker for worker in self._workers if worker not in ended]
        return [WorkerExit(name, job_id, describe_exit(process.exitcode or 0)) for name, job_id, process in ended]

    def close(self) -> None:
        for _, _, process in self._workers:
            process.terminate()
        for _, _, process in self._workers:
            process.join()

    def _await_exit(self, sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        self.on_exit()
