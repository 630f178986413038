from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from caesura.jobs import Artifact, Job, Lease, Status, TrainingState
from caesura.store import Store, open_store
from caesura.store.rows import Telling

MakeJob = Callable[..., Job]
REINFORCEMENT = {
    "type": "reinforcement",
    "reinforcement": {"grader": {"type": "string_check"}, "hyperparameters": {}},
}
#: For tests of what is SQLite's own.
only_sqlite = pytest.mark.parametrize("database_url", [None], ids=["sqlite"])


@pytest.fixture
def open_again(tmp_path: Path, database_url: str | None) -> Iterator[Callable[[], Store]]:
    """Opens the test's store, each time as another server would."""
    opened: list[Store] = []

    def open_one() -> Store:
        opened.append(open_store(tmp_path, database_url))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_again: Callable[[], Store]) -> Store:
    return open_again()


@pytest.fixture
def make_job(store: Store) -> MakeJob:
    """A stored job that has come as far as `status` (validating_files, queued)."""
    numbers = itertools.count(1)

    def make(status: Status = Status.QUEUED, **values: object) -> Job:
        number = next(numbers)
        defaults: dict[str, object] = {
            "id": f"ftjob-{number}",
            "created_at": number,
            "status": Status.VALIDATING_FILES,
            "base": "caesura-tiny",
            "model_name": f"ft:caesura-tiny:caesura::{number}",
            "method": {"type": "supervised", "supervised": {"hyperparameters": {}}},
            "training_file": "file-1",
            "training_blob": "files/1",
            "seed": 1,
        }
        job = Job(**(defaults | values))  # type: ignore[arg-type]
        store.jobs.create(job)
        if status is Status.QUEUED:
            assert store.jobs.mark_valid(job.id)
        return store.jobs.get(job.id)

    return make


@pytest.fixture
def claim(store: Store) -> Callable[..., Lease]:
    def claim(job: Job, worker: str = "worker-1", lease_s: float = 60.0) -> Lease:
        claimed = store.attempts.claim(job.id, worker, lease_s)
        assert claimed is not None
        return claimed[1]

    return claim


def make_state(step: int, name: str = "a") -> TrainingState:
    return TrainingState(
        step,
        Artifact(f"adapters/{name}{step}", {"adapter_model.safetensors": (1, "00")}),
        Artifact(f"optimizers/{name}{step}", {"optimizer.safetensors": (1, "00")}),
    )


def step_telling(step: int, loss: float = 1.0) -> Telling:
    data = {"step": step, "total_steps": 9, "train_loss": loss}
    return Telling(f"Step {step}/9", data=data, type="metrics", key=f"step:{step}")


def messages(store: Store, job: Job) -> list[str]:
    """Oldest first."""
    events, _ = store.jobs.list_events(job.id, after=None, limit=1000)
    return [event.message for event in reversed(events)]
