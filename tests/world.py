"""A data folder with jobs in it, and workers on them: what the tests of training and of failures share."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caesura.executors import WORKER_ENVIRONMENT
from caesura.ids import new_id, new_token, random_text
from caesura.jobs import Job, Model, Status
from caesura.settings import Settings
from caesura.storage import LocalStorage, get_files
from caesura.store import Store, open_store
from caesura.worker.attempt import run_attempt

EXAMPLES = Path(__file__).parent.parent / "examples"
#: The longest that a test waits for what it expects.
PATIENCE_S = 120.0
TIMES = ("timing", "tokens_per_second")


@dataclass(frozen=True)
class Outcome:
    """All that an undisturbed run and a disturbed one must have in common."""

    metrics: list[dict[str, Any]]
    adapter: dict[str, str]
    #: Of every result file, by its place.
    results: list[str]
    trained_tokens: int | None


class World:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store: Store = open_store(settings.data_dir, settings.secret_database_url)
        self.storage = LocalStorage(settings.data_dir / "blobs")

    def upload(self, rows: list[dict[str, Any]] | bytes) -> str:
        """The blob of a training file."""
        data = rows if isinstance(rows, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        with self.storage.writer(f"files/{new_token()}") as writer:
            writer.write(data)
        return writer.blob.key

    def create_job(
        self,
        training: list[dict[str, Any]],
        validation: list[dict[str, Any]] | None = None,
        *,
        base: str = "micro",
        seed: int = 7,
        method: str = "supervised",
        start: Model | None = None,
        body: dict[str, Any] | None = None,
        extras: dict[str, Any] | None = None,
        adapter: dict[str, Any] | None = None,
        **hyperparameters: object,
    ) -> Job:
        """A queued job; one that goes on from the tuned model `start`, if there is one.

        `body`: what its method has beside hyperparameters; `adapter`: what it asks for of its adapter; `extras`: of all
        else beyond OpenAI's API.
        """
        job = Job(
            id=new_id("ftjob-"),
            created_at=1_700_000_000,
            status=Status.VALIDATING_FILES,
            base=base,
            model_name=f"ft:{base}:caesura::{random_text(8)}",
            method={"type": method, method: {"hyperparameters": hyperparameters, **(body or {})}},
            training_file="file-training",
            training_blob=self.upload(training),
            validation_file=None if validation is None else "file-validation",
            validation_blob=None if validation is None else self.upload(validation),
            start_model=None if start is None else start.name,
            start_adapter=None if start is None else start.adapter,
            seed=seed,
            extras={**(extras or {}), **({} if adapter is None else {"adapter": adapter})},
        )
        self.store.jobs.create(job)
        self.store.jobs.mark_valid(job.id)
        return job

    def run(self, job: Job, worker: str = "worker-here", stopping: threading.Event | None = None) -> Job:
        """Make one attempt in this process."""
        run_attempt(job.id, worker, self.settings, self.store, self.storage, stopping or threading.Event())
        return self.store.jobs.get(job.id)

    def start_worker(self, job: Job, name: str) -> subprocess.Popen[bytes]:
        """Make one attempt in a process of its own, as the server does."""
        environment = {**os.environ, **WORKER_ENVIRONMENT, **self.settings.to_environment()}
        return subprocess.Popen([sys.executable, "-m", "caesura.worker", job.id, "--name", name], env=environment)

    def report(self, job: Job) -> dict[str, Any]:
        """The report of the job's data, from the file that the job names."""
        file = self.store.files.get(self.store.jobs.get(job.id).extras["validation_report"])
        assert (file.purpose, file.filename) == ("fine-tune-results", "validation_report.json")
        with self.storage.open(file.blob) as lines:
            return json.load(lines)

    def outcome(self, job: Job) -> Outcome:
        job = self.store.jobs.get(job.id)
        assert job.status is Status.SUCCEEDED, job
        model = self.store.models.find(job.model_name)
        assert model is not None
        files = get_files(self.storage, model.adapter)
        results: list[str] = []
        for file_id in job.result_files:
            with self.storage.open(self.store.files.get(file_id).blob) as file:
                results.append(file.read().decode())
        return Outcome(
            as_computed(self.store.jobs.list_metrics(job.id)),
            {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            results,
            job.trained_tokens,
        )

    def messages(self, job: Job) -> list[str]:
        """The job's events, oldest first."""
        events, _ = self.store.jobs.list_events(job.id, after=None, limit=1000)
        return [event.message for event in reversed(events)]

    def close(self) -> None:
        self.store.close()


def as_computed(metrics: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The data of metric events but for how long something took, which is no part of what was computed."""
    return [{name: value for name, value in data.items() if name not in TIMES} for data in metrics]


def example_rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / name).read_text().splitlines()]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look every few milliseconds until `condition` holds."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_at, f"waited {PATIENCE_S:.0f} s in vain: {what}"
        time.sleep(0.005)
