"""Workers and servers as processes of their own that start in a moment: forked from a process that has imported all.

What kills them, stops them or fills their disk is real. Their memory is a copy, so a test may change in them what it
likes before they begin.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
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
FORK = multiprocessing.get_context("fork")
KEY = "sk-test-key-of-the-fault-points"


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
    # Before there is a thread or an open database, neither of which may be taken along by a fork.
    here, there = multiprocessing.Pipe()
    spawner = FORK.Process(target=spawn, args=(there, here))
    spawner.start()
    there.close()
    orders.take()
    os.environ.update(orders.settings.to_environment())
    os.environ["CAESURA_API_KEY"] = KEY
    app.LocalExecutor = lambda settings, on_exit: ForkingExecutor(settings, on_exit, here)  # type: ignore[misc, assignment]
    sys.argv = ["caesura", "serve"]
    try:
        cli.main()
    except SystemExit:
        here.send(None)  # it has not come as far as to have an executor that would end it
        raise


def spawn(orders: Connection, others: Connection) -> None:
    """Start the workers that come as orders, and say how they end, until the server is gone. They go on then."""
    others.close()
    workers: dict[int, tuple[str, str, BaseProcess]] = {}
    while True:
        for ready in wait([orders, *workers]):
            try:
                if ready is orders:
                    order = orders.recv()
                    if order is None:
                        os._exit(0)
                    settings, job_id, name = order
                    taken = Orders(settings, settings.data_dir.with_name("workers.log"))
                    process = FORK.Process(target=attempt, args=(taken, job_id, name))
                    process.start()
                    workers[process.sentinel] = name, job_id, process
                else:
                    assert isinstance(ready, int)
                    name, job_id, process = workers.pop(ready)
                    process.join()
                    orders.send(WorkerExit(name, job_id, describe_exit(process.exitcode or 0)))
            except (EOFError, OSError):
                os._exit(0)


class ForkingExecutor:
    """An executor: its workers are not armed, and go on when the server is killed."""

    def __init__(self, settings: Settings, on_exit: Callable[[], None], spawner: Connection) -> None:
        # Of the class itself: what the settings were read by cannot go to another process.
        self._settings = Settings.model_validate(settings.model_dump())
        self._on_exit = on_exit
        self._spawner = spawner
        self._ended: list[WorkerExit] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, job_id: str) -> str:
        name = f"worker-{random_text(12)}"
        self._spawner.send((self._settings, job_id, name))
        return name

    def tick(self) -> list[WorkerExit]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Workers that are left go on, as if the server had been killed."""
        self._spawner.send(None)

    def _listen(self) -> None:
        while True:
            try:
                self._ended.append(self._spawner.recv())
            except (EOFError, OSError):
                return
            self._on_exit()
