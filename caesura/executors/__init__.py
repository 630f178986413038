"""Executors start workers and say when they end. Which job is whose is in the database, not here."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Protocol

WORKER_ENVIRONMENT = {
    # A step is thousands of small operations, and to wake a thread takes longer than many of them: a waiting one stays
    # awake for so many turns of a loop, which is half as fast again as sleeping at once, and a quarter slower beside a
    # process that keeps a core busy (docs/benchmarks.md). Without a bound it would then be 5 to 29 times slower.
    "GOMP_SPINCOUNT": "5000",
    # The thread count is part of the arithmetic: nobody but the plan chooses it.
    "OMP_DYNAMIC": "FALSE",
    # Without it, cuBLAS refuses to be deterministic.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """A worker process has ended. `cause` says how, in words for the user."""

    worker: str
    job_id: str | None
    cause: str


class Executor(Protocol):
    """Where workers run. Methods are called by the scheduler's thread alone."""

    def start(self, job_id: str) -> str:
        """Start a worker for the job and return its name; it claims the job itself, and may find it taken."""
        ...

    def tick(self) -> list[WorkerExit]:
        """What has ended since the last call. Never waits."""
        ...

    def close(self) -> None:
        """Have the workers save their jobs and give them back, and wait until they are gone."""
        ...


def describe_exit(returncode: int) -> str:
    """How a child process ended, in words for the user."""
    if returncode >= 0:
        return f"exit code {returncode}"
    return f"killed by {signal.Signals(-returncode).name}"
