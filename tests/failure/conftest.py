from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from caesura.jobs import Job
from caesura.settings import EMBEDDED_BASE, Settings
from tests.world import Outcome, World, example_rows

#: 80 rows in batches of 8, three epochs: steps slow enough to be met by a signal.
HYPERPARAMETERS = {"batch_size": 8, "n_epochs": 3}
NUM_STEPS = 30
NUM_ROWS = 80
EXAMPLES_OF = {"supervised": "style", "dpo": "preference"}


def make_settings(folder: Path) -> Settings:
    return Settings(data_dir=folder, threads=1, device="cpu", lease_s=2.0, save_interval_s=0.5)


def create_job(world: World, method: str = "supervised") -> Job:
    return world.create_job(
        example_rows(f"{EXAMPLES_OF[method]}_train.jsonl")[:NUM_ROWS],
        example_rows(f"{EXAMPLES_OF[method]}_validation.jsonl"),
        base=EMBEDDED_BASE,
        method=method,
        **HYPERPARAMETERS,
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(make_settings(tmp_path / "data"))
    yield world
    world.close()


@pytest.fixture(scope="session")
def undisturbed_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """What the job of a method comes to in one process that nobody disturbs."""

    @cache
    def run(method: str) -> Outcome:
        world = World(make_settings(tmp_path_factory.mktemp("undisturbed")))
        job = create_job(world, method)
        assert world.start_worker(job, "worker-undisturbed").wait() == 0
        outcome = world.outcome(job)
        world.close()
        return outcome

    return run


@pytest.fixture
def undisturbed(undisturbed_of: Callable[[str], Outcome]) -> Outcome:
    return undisturbed_of("supervised")
