"""Caesura's own way: one attempt at a job by the worker's code, with store, metric events and saves."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.programs import arguments, finish
from benchmarks.programs.recorder import Recorder
from caesura.ids import new_id, new_token
from caesura.jobs import Job, Status
from caesura.models.loading import Base
from caesura.models.lora import Layers
from caesura.settings import EMBEDDED_BASE, Settings
from caesura.storage import LocalStorage
from caesura.store import Store, open_store
from caesura.training.method import Method
from caesura.training.plan import Plan
from caesura.training.state import State
from caesura.training.trainer import StepResult, Trainer
from caesura.worker import attempt


def main() -> None:
    asked = arguments()
    recorder = Recorder(asked["num_warmup"], asked["num_timed"])
    stopping = threading.Event()
    watched = _watched(recorder, stopping)
    attempt.Trainer = watched  # type: ignore[misc]
    with TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), threads=asked["threads"], dtype=asked["dtype"])
        store = open_store(settings.data_dir)
        storage = LocalStorage(settings.data_dir / "blobs")
        hyperparameters = {"n_epochs": 1, "batch_size": asked["batch_size"], "learning_rate_multiplier": 1.0}
        job_id = create_job(store, storage, asked, EMBEDDED_BASE, "supervised", hyperparameters)
        attempt.run_attempt(job_id, "benchmark", settings, store, storage, stopping)
        saved = store.jobs.list_states(job_id)
        store.close()
    assert saved, "the product's own saves are part of what is measured"
    finish(recorder.result() | {"num_learned": watched.num_learned, "num_saves": len(saved)})


def create_job(
    store: Store,
    storage: LocalStorage,
    asked: dict[str, Any],
    base: str,
    method: str,
    hyperparameters: dict[str, Any],
    body: dict[str, Any] | None = None,
) -> str:
    """A queued job on the file `data`. `body`: what its method has beside hyperparameters."""
    with storage.writer(f"files/{new_token()}") as writer:
        writer.write(Path(asked["data"]).read_bytes())
    file = store.files.create(writer.blob, "rows.jsonl", "fine-tune")
    job = Job(
        id=new_id("ftjob-"),
        created_at=int(time.time()),
        status=Status.VALIDATING_FILES,
        base=base,
        model_name="ft:benchmark",
        method={"type": method, method: {"hyperparameters": hyperparameters, **(body or {})}},
        training_file=file.id,
        training_blob=file.blob,
        seed=asked["seed"],
    )
    store.jobs.create(job)
    store.jobs.mark_valid(job.id)
    return job.id


def _watched(recorder: Recorder, stopping: threading.Event) -> type[Trainer]:
    class Watched(Trainer):
        """The trainer, telling the recorder of its steps, and stopping the worker after the last one wanted."""

        num_learned = 0

        def __init__(self, base: Base, layers: Layers, method: Method, plan: Plan, state: State) -> None:
            super().__init__(base, layers, method, plan, state)
            recorder.watch(base.model.get_submodule("model.embed_tokens"))
            self._watched_method = method
            self._watched_steps = plan.num_steps

        def step(self) -> StepResult:
            result = super().step()
            rows = self._watched_method.rows_of_step(result.step)
            recorder.tokens.append(sum(row.num_tokens for row in rows))
            if result.step > recorder.num_warmup:
                recorder.losses.append(result.metrics["train_loss"])
            if recorder.end_step():
                steps = range(1, self._watched_steps + 1)
                type(self).num_learned = sum(
                    row.num_loss_tokens for step in steps for row in self._watched_method.rows_of_step(step)
                )
                stopping.set()
            return result

    return Watched


if __name__ == "__main__":
    main()
