"""Caesura's own way: one attempt at a job by the worker's code, with store, metric events and saves."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.programs import arguments, finish
from benchmarks.programs.recorder import Recorder
from caesura.ids import new_id, new_token
from caesura.jobs import Job, Status
from caesura.models.loading import Base
from caesura.settings import BaseModelSettings, Settings
from caesura.storage import LocalStorage
from caesura.store import Store, open_store
from caesura.training.method import Method
from caesura.training.plan import Plan
from caesura.training.state import State
from caesura.training.trained import Trained
from caesura.training.trainer import StepResult, Trainer
from caesura.worker import attempt

BASE = "random"


def main() -> None:
    asked = arguments()
    recorder = Recorder(1, asked["num_steps"])
    watched = _watched(recorder)
    attempt.Trainer = watched  # type: ignore[misc]
    with TemporaryDirectory() as folder:
        settings = make_settings(asked, folder)
        store = open_store(settings.data_dir)
        storage = LocalStorage(settings.data_dir / "blobs")
        job_id = create_job(store, storage, asked, BASE, "supervised", **of_job(asked))
        attempt.run_attempt(job_id, "benchmark", settings, store, storage, threading.Event())
        job = store.jobs.get(job_id)
        assert job.status is Status.SUCCEEDED, job.error
        store.close()
    finish(recorder.result() | {"num_learned": watched.num_learned})


def of_job(asked: dict[str, Any]) -> dict[str, Any]:
    """What such a job says beside its base, its method and its file."""
    hyperparameters = {"n_epochs": 1, "batch_size": asked["batch_size"], "learning_rate_multiplier": 1.0}
    return {"hyperparameters": hyperparameters, "extras": {"adapter": {"type": asked["type"]}}}


def make_settings(asked: dict[str, Any], folder: str) -> Settings:
    return Settings(
        data_dir=Path(folder),
        threads=asked["threads"],
        dtype=asked["dtype"],
        models={BASE: BaseModelSettings(path=asked["model"])},
    )


def create_job(
    store: Store,
    storage: LocalStorage,
    asked: dict[str, Any],
    base: str,
    method: str,
    hyperparameters: dict[str, Any],
    body: dict[str, Any] | None = None,
    extras: dict[str, Any] | None = None,
) -> str:
    """A queued job on the file `data`. `body`: what its method has beside hyperparameters."""
    with storage.writer(f"files/{new_token()}") as writer:
        writer.write(Path(asked["data"]).read_bytes())
    file = store.files.create(writer.blob, "rows.jsonl", "fine-tune")
    job = make_job(asked["seed"], base, method, hyperparameters, body, extras)
    job = replace(job, training_file=file.id, training_blob=file.blob)
    store.jobs.create(job)
    store.jobs.mark_valid(job.id)
    return job.id


def make_job(
    seed: int,
    base: str,
    method: str,
    hyperparameters: dict[str, Any],
    body: dict[str, Any] | None = None,
    extras: dict[str, Any] | None = None,
) -> Job:
    """Without a file yet."""
    return Job(
        id=new_id("ftjob-"),
        created_at=int(time.time()),
        status=Status.VALIDATING_FILES,
        base=base,
        model_name="ft:benchmark",
        method={"type": method, method: {"hyperparameters": hyperparameters, **(body or {})}},
        training_file="",
        training_blob="",
        seed=seed,
        extras=extras or {},
    )


def _watched(recorder: Recorder) -> type[Trainer]:
    class Watched(Trainer):
        """The trainer, telling the recorder of its steps."""

        num_learned = 0

        def __init__(self, base: Base, trained: Trained, method: Method, plan: Plan, state: State) -> None:
            super().__init__(base, trained, method, plan, state)
            recorder.watch(base.model.get_submodule("model.embed_tokens"))
            self._watched_method = method
            steps = range(1, plan.num_steps + 1)
            type(self).num_learned = sum(row.num_loss_tokens for step in steps for row in method.rows_of_step(step))
            recorder.begin()

        def step(self) -> StepResult:
            result = super().step()
            recorder.tokens.append(sum(row.num_tokens for row in self._watched_method.rows_of_step(result.step)))
            recorder.losses.append(result.metrics["train_loss"])
            recorder.end_step()
            return result

    return Watched


if __name__ == "__main__":
    main()
