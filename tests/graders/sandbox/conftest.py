from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from caesura.graders.sandbox import Level, Limits
from tests.graders.sandbox.bench import Bench, wait_until

SMALL = Limits(wall_clock_s=2.0, memory_bytes=256 * 2**20, file_bytes=8 * 2**20, num_files=2000)


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(params=[Level.STRONG, Level.KERNEL], ids=lambda level: level.value, scope="module")
def level(request: pytest.FixtureRequest) -> Level:
    if request.param is Level.STRONG and shutil.which("bwrap") is None:
        pytest.skip("there is no bwrap: apt install bubblewrap")
    return request.param


@pytest.fixture(scope="module")
def benches(level: Level, runner: asyncio.Runner) -> Iterator[tuple[Bench, Bench]]:
    """Sandboxes with small limits that the tests of a module share; nothing of them may be left in the end."""
    runner.run(asyncio.sleep(0))  # the loop's own descriptors
    before, num_before = children(), psutil.Process().num_fds()
    benches = Bench(level, SMALL, num_workers=2), Bench(level, replace(SMALL, wall_clock_s=0.5), num_workers=2)
    yield benches
    for bench in benches:
        runner.run(bench.sandbox.close())
    wait_until(lambda: children() <= before)
    assert psutil.Process().num_fds() == num_before


@pytest.fixture(scope="module")
def bench(benches: tuple[Bench, Bench]) -> Bench:
    return benches[0]


@pytest.fixture(scope="module")
def hasty_bench(benches: tuple[Bench, Bench]) -> Bench:
    """One whose calls have little time."""
    return benches[1]
