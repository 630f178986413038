from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from caesura.jobs import Job
from caesura.settings import EMBEDDED_BASE, Settings
from tests.world import Outcome, World, example_rows

#: 80 rows in batches of 8, three epochs: steps slow enough to be met by a signal.
HYPERPARAMETERS = {"batch_size": 8, "n_epochs": 3}
NUM_STEPS = 30


def make_settings(folder: Path) -> Settings:
    return Settings(data_dir=folder, threads=1, device="cpu", lease_s=2.0, save_interval_s=0.5)


def create_job(world: World) -> Job:
    return world.create_job(
        example_rows("style_train.jsonl"),
        example_rows("style_validation.jsonl"),
        base=EMBEDDED_BASE,
        **HYPERPARAMETERS,
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(make_settings(tmp_path / "data"))
    yield world
    world.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the job comes to in one process that nobody disturbs."""
    world = World(make_settings(tmp_path_factory.mktemp("undisturbed")))
    job = create_job(world)
    assert world.start_worker(job, "worker-undisturbed").wait() == 0
    outcome = world.outcome(job)
    world.close()
    return outcome
