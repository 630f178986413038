"""Caesura's own way of reinforcement: a job by the worker's code, with store, events, rollouts and saves."""

from __future__ import annotations

import threading
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.programs import arguments, finish
from benchmarks.programs.recorder import Recorder
from benchmarks.programs.train_caesura import create_job
from caesura.graders.grade import Grade, Grader, Observation, Score
from caesura.models.loading import Base
from caesura.models.lora import Layers
from caesura.settings import BaseModelSettings, Settings
from caesura.storage import LocalStorage
from caesura.store import open_store
from caesura.training import grading
from caesura.training.method import Method
from caesura.training.plan import Plan
from caesura.training.state import State
from caesura.training.trainer import StepResult, Trainer
from caesura.worker import attempt

BASE = "random"
#: Never asked: see `reward`.
GRADER = {"type": "string_check", "name": "trivial", "input": "", "reference": "", "operation": "eq"}


async def reward(_grader: Grader, observation: Observation) -> Grade:
    """How many different characters an answer has; also of one that was cut off, as answers of random weights are."""
    return Grade("trivial", "python", Score(float(len(set(observation.sample["output_text"])))), 0.0)


def main() -> None:
    asked = arguments()
    recorder = Recorder(asked["num_warmup"], asked["num_timed"])
    stopping = threading.Event()
    watched = _watched(recorder, stopping, asked["batch_size"] * asked["num_samples"])
    attempt.Trainer = watched  # type: ignore[misc]
    grading.grade = reward
    with TemporaryDirectory() as folder:
        settings = Settings(
            data_dir=Path(folder),
            threads=asked["threads"],
            dtype=asked["dtype"],
            models={BASE: BaseModelSettings(path=asked["model"])},
        )
        store = open_store(settings.data_dir)
        storage = LocalStorage(settings.data_dir / "blobs")
        hyperparameters = {
            "n_epochs": 1,
            "batch_size": asked["batch_size"],
            "compute_multiplier": asked["num_samples"] / 8,
            "max_completion_tokens": asked["num_tokens"],
            "eval_interval": 10**6,
        }
        body = {"grader": GRADER}
        job_id = create_job(store, storage, asked, BASE, "reinforcement", hyperparameters, body)
        attempt.run_attempt(job_id, "benchmark", settings, store, storage, stopping)
        steps = store.jobs.list_metrics(job_id)[asked["num_warmup"] :]
        store.close()
    shares = {
        f"{part}_share": sum(step["timing"]["step"][part] for step in steps)
        / sum(step["timing"]["step"]["full_iteration"] for step in steps)
        for part in ("sampling", "grading", "training", "other")
    }
    finish(recorder.result() | shares)


def _watched(recorder: Recorder, stopping: threading.Event, num_samples: int) -> type[Trainer]:
    class Watched(Trainer):
        """The trainer, telling the recorder of its steps, and stopping the worker after the last one wanted."""

        def __init__(self, base: Base, layers: Layers, method: Method, plan: Plan, state: State) -> None:
            super().__init__(base, layers, method, plan, state)
            recorder.watch(base.model.get_submodule("model.embed_tokens"))

        def step(self) -> StepResult:
            result = super().step()
            assert result.details is not None
            assert result.details.data["groups_without_spread"] == 0, "what is skipped is not to be measured"
            recorder.tokens.append(num_samples)
            recorder.losses.append(result.metrics["train_loss"])
            if recorder.end_step():
                stopping.set()
            return result

    return Watched


if __name__ == "__main__":
    main()
