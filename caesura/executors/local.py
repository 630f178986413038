"""Workers as child processes of the server, and one more, warm, waiting for the next job.

A child is in a session of its own: when the server is killed, its workers go on, and the next server finds them by
their leases. The spare, which has no job, ends with the server.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from caesura.executors import WORKER_ENVIRONMENT, WorkerExit, describe_exit
from caesura.ids import random_text
from caesura.settings import Settings

logger = logging.getLogger(__name__)

#: A fresh job has the cores to itself for so long before the next spare warms up beside it.
SPARE_DELAY_S = 3.0
#: What a worker may take to end its step and save when the server stops.
GRACE_S = 30.0


@dataclass(slots=True)
class _Worker:
    name: str
    process: subprocess.Popen[str]
    job_id: str | None


class LocalExecutor:
    """`on_exit` is called, from any thread, when a child has ended: a hint to call `tick` soon."""

    def __init__(self, settings: Settings, on_exit: Callable[[], None]) -> None:
        self._settings = settings
        self._on_exit = on_exit
        self._workers: list[_Worker] = []
        self._spare: _Worker | None = None
        self._spare_due_at = time.monotonic()

    def start(self, job_id: str) -> str:
        worker = self._spare
        self._spare = None
        if worker is None or not _hand_over(worker, job_id):
            worker = self._launch(job_id)
        self._workers.append(worker)
        self._spare_due_at = time.monotonic() + SPARE_DELAY_S
        return worker.name

    def tick(self) -> list[WorkerExit]:
        self._keep_spare()
        ended = [worker for worker in self._workers if worker.process.poll() is not None]
        self._workers = [worker for worker in self._workers if worker not in ended]
        if ended:
            self._spare_due_at = time.monotonic()
            self._keep_spare()
        return [WorkerExit(worker.name, worker.job_id, describe_exit(worker.process.returncode)) for worker in ended]

    def close(self) -> None:
        workers = list(self._workers)
        if self._spare is not None:
            _hang_up(self._spare)
            workers.append(self._spare)
        for worker in workers:
            worker.process.send_signal(signal.SIGTERM)
        give_up_at = time.monotonic() + GRACE_S
        for worker in workers:
            try:
                worker.process.wait(max(0.0, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning(
                    "%s did not end within %.0f s and is killed; its job resumes later", worker.name, GRACE_S
                )
                worker.process.kill()
                worker.process.wait()

    def _keep_spare(self) -> None:
        if self._spare is not None and self._spare.process.poll() is not None:
            logger.warning("the spare worker ended: %s", describe_exit(self._spare.process.returncode))
            _hang_up(self._spare)
            self._spare = None
            self._spare_due_at = time.monotonic() + SPARE_DELAY_S
        if self._settings.warm_spare and self._spare is None and time.monotonic() >= self._spare_due_at:
            self._spare = self._launch(None)

    def _launch(self, job_id: str | None) -> _Worker:
        name = f"worker-{random_text(12)}"
        command = [sys.executable, "-m", "caesura.worker", "--name", name, *([job_id] if job_id else ["--spare"])]
        process = subprocess.Popen(
            command,
            env={**WORKER_ENVIRONMENT, **os.environ, **self._settings.to_environment()},
            stdin=subprocess.DEVNULL if job_id else subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._await_exit, args=(process,), name=f"await-{name}", daemon=True).start()
        return _Worker(name, process, job_id)

    def _await_exit(self, process: subprocess.Popen[str]) -> None:
        process.wait()
        self._on_exit()


def _hand_over(worker: _Worker, job_id: str) -> bool:
    """Give the spare its job; False when it has died."""
    assert worker.process.stdin is not None
    worker.job_id = job_id
    try:
        with worker.process.stdin as pipe:
            pipe.write(job_id + "\n")
    except OSError:
        return False
    return True


def _hang_up(spare: _Worker) -> None:
    """Close this end of the spare's pipe: it has died, or is about to."""
    assert spare.process.stdin is not None
    with suppress(OSError):
        spare.process.stdin.close()
