"""A job by the worker's own code, with its saves at their default interval: what they take from the steps."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.programs import arguments, finish
from benchmarks.programs.train_caesura import create_job
from caesura.settings import Settings
from caesura.storage import LocalStorage
from caesura.store import open_store
from caesura.training.state import State
from caesura.training.trainer import StepResult, Trainer
from caesura.worker import attempt
from caesura.worker.saver import Saver


class Watch:
    """Seconds: of the steps, of what a save holds them up by, of the thread that saves (and of its CPU)."""

    def __init__(self, seconds: float) -> None:
        self.stopping = threading.Event()
        self.began_s = 0.0
        self.until_s = seconds
        self.num_steps = 0
        self.held_up: list[float] = []
        self.saved: list[float] = []
        self.saved_cpu: list[float] = []
        self.num_bytes = 0
        #: The last copy of a state, seconds.
        self.copied_s = 0.0


def main() -> None:
    asked = arguments()
    watch = Watch(asked["seconds"])
    attempt.Trainer = _watched_trainer(watch)  # type: ignore[misc]
    attempt.Saver = _watched_saver(watch)  # type: ignore[misc]
    with TemporaryDirectory() as folder:
        models = {} if asked["model"] is None else {"random": {"path": asked["model"]}}
        settings = Settings(data_dir=Path(folder), threads=asked["threads"], models=models)  # type: ignore[arg-type]
        base = next(name for name in settings.bases() if asked["model"] is None or name == "random")
        store = open_store(settings.data_dir)
        storage = LocalStorage(settings.data_dir / "blobs")
        hyperparameters = {"n_epochs": 50, "batch_size": asked["batch_size"], "learning_rate_multiplier": 1.0}
        job_id = create_job(store, storage, asked, base, "supervised", hyperparameters)
        attempt.run_attempt(job_id, "benchmark", settings, store, storage, watch.stopping)
        watch.num_bytes = sum(size for size, _ in store.jobs.list_states(job_id)[0].optimizer.files.values())
        store.close()
    finish(
        {
            "steps_s": watch.until_s,
            "num_steps": watch.num_steps,
            "held_up_s": sum(watch.held_up),
            "num_saves": len(watch.saved),
            "save_s": sum(watch.saved) / len(watch.saved),
            "save_cpu_s": sum(watch.saved_cpu) / len(watch.saved_cpu),
            "num_bytes": watch.num_bytes,
        }
    )


def _watched_trainer(watch: Watch) -> type[Trainer]:
    class Watched(Trainer):
        def step(self) -> StepResult:
            result = super().step()
            now = time.perf_counter()
            watch.num_steps += 1
            if watch.num_steps == 1:
                watch.began_s = now
            elif now - watch.began_s > watch.until_s and not watch.stopping.is_set():
                watch.until_s = now - watch.began_s
                watch.stopping.set()
            return result

        def capture(self) -> State:
            began = time.perf_counter()
            state = super().capture()
            watch.copied_s = time.perf_counter() - began
            return state

    return Watched


def _watched_saver(watch: Watch) -> type[Saver]:
    class Watched(Saver):
        def save_in_passing(self, state: State) -> None:
            began = time.perf_counter()
            super().save_in_passing(state)
            watch.held_up.append(watch.copied_s + time.perf_counter() - began)

        def _try_to_save(self, state: State) -> None:
            began, began_cpu = time.perf_counter(), time.thread_time()
            super()._try_to_save(state)
            watch.saved.append(time.perf_counter() - began)
            watch.saved_cpu.append(time.thread_time() - began_cpu)

    return Watched


if __name__ == "__main__":
    main()
