"""Caesura's own way of DPO: a whole job by the worker's code, with store, metric events and saves."""

from __future__ import annotations

import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.programs import arguments, finish
from benchmarks.programs.recorder import Recorder
from benchmarks.programs.train_caesura import create_job
from caesura.jobs import Status
from caesura.models.loading import Base
from caesura.models.lora import Layers
from caesura.settings import BaseModelSettings, Settings
from caesura.storage import LocalStorage
from caesura.store import open_store
from caesura.training.method import Method
from caesura.training.plan import Plan
from caesura.training.state import State
from caesura.training.trainer import StepResult, Trainer
from caesura.worker import attempt

BASE = "random"


def main() -> None:
    asked = arguments()
    recorder = Recorder(1, asked["num_epochs"] * asked["steps_per_epoch"])
    watched = _watched(recorder)
    attempt.Trainer = watched  # type: ignore[misc]
    with TemporaryDirectory() as folder:
        settings = Settings(
            data_dir=Path(folder),
            threads=asked["threads"],
            dtype=asked["dtype"],
            models={BASE: BaseModelSettings(path=asked["model"])},
        )
        store = open_store(settings.data_dir)
        storage = LocalStorage(settings.data_dir / "blobs")
        hyperparameters = {"n_epochs": asked["num_epochs"], "batch_size": asked["batch_size"]}
        job_id = create_job(store, storage, asked, BASE, "dpo", hyperparameters)
        attempt.run_attempt(job_id, "benchmark", settings, store, storage, threading.Event())
        assert store.jobs.get(job_id).status is Status.SUCCEEDED, store.jobs.get(job_id).error
        store.close()
    finish(
        recorder.result()
        | {
            "num_learned": watched.num_learned,
            "first_step_s": recorder.first_step_s(),
            "last_epoch_s": recorder.rate_of_last(asked["steps_per_epoch"]),
        }
    )


def _watched(recorder: Recorder) -> type[Trainer]:
    class Watched(Trainer):
        """The trainer, telling the recorder of its steps."""

        num_learned = 0

        def __init__(self, base: Base, layers: Layers, method: Method, plan: Plan, state: State) -> None:
            super().__init__(base, layers, method, plan, state)
            recorder.watch(base.model.get_submodule("model.embed_tokens"))
            self._watched_method: Any = method
            pairs = [
                row for step in range(1, plan.steps_per_epoch + 1) for row in self._watched_method.rows_of_step(step)
            ]
            type(self).num_learned = sum(side.num_loss_tokens for pair in pairs for side in pair.sides)
            recorder.begin()

        def step(self) -> StepResult:
            result = super().step()
            recorder.tokens.append(sum(pair.num_tokens for pair in self._watched_method.rows_of_step(result.step)))
            recorder.losses.append(result.metrics["train_loss"])
            recorder.end_step()
            return result

    return Watched


if __name__ == "__main__":
    main()
