from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from caesura.jobs import Job
from tests.failure.points.harness import Bench, make_settings
from tests.world import Outcome, World

MakeBench = Callable[..., Bench]
#: Point, method, what happened, and whether the bytes are the same.
Survived = Callable[..., None]


@pytest.fixture
def make_bench(micro_model: Path, tmp_path: Path) -> Iterator[MakeBench]:
    benches: list[Bench] = []

    def make(method: str = "supervised", folder: Path | None = None, **values: Any) -> Bench:
        settings = make_settings((folder or tmp_path) / "data", micro_model, **values)
        benches.append(Bench(World(settings), tmp_path, method))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench()


@pytest.fixture(scope="session")
def undisturbed_of(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """What the job of a method comes to when nobody disturbs it."""

    @cache
    def run(method: str) -> Outcome:
        folder = tmp_path_factory.mktemp("undisturbed")
        bench = Bench(World(make_settings(folder / "data", micro_model)), folder, method)
        job = bench.create_job()
        assert bench.run(job) == 0, bench.log()
        outcome = bench.world.outcome(job)
        bench.close()
        return outcome

    return run


@pytest.fixture
def survived(request: pytest.FixtureRequest, undisturbed_of: Callable[[str], Outcome]) -> Survived:
    """Compare the job, which has ended, with an undisturbed one, and put the row into the table that is printed."""

    def note(bench: Bench, job: Job, point: str, what: str) -> None:
        same = bench.world.outcome(job) == undisturbed_of(bench.method)
        request.node.user_properties.append(("survived", [point, bench.method, what, "yes" if same else "NO"]))
        assert same
        bench.check_steps(job)
        if not any(word in point for word in ("a state's", "both states")):
            assert not any("is damaged" in message for message in bench.world.messages(job))
        bench.sweep()

    return note


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system of its own")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
