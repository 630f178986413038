"""Every place that can be armed is armed by some test, and costs nothing where it is not."""

from __future__ import annotations

import re
from pathlib import Path
from timeit import timeit

import pytest

from caesura import faults
from caesura.faults import Point

PACKAGE = Path(faults.__file__).parent
#: What the tests of this folder say, wherever they say it.
TESTS = "\n".join(
    path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path.name != Path(__file__).name
)


@pytest.mark.parametrize("point", Point)
def test_a_place_is_in_the_code_and_some_test_arms_it(point: Point) -> None:
    uses = [path for path in PACKAGE.rglob("*.py") if f"Point.{point.name}" in path.read_text()]

    assert len({path.parent for path in uses}) == 1  # each kind of database has those of its transactions
    assert re.search(rf'"{re.escape(point)}[":]', TESTS), f"no test arms {point}"


@pytest.mark.parametrize("text", ["nowhere:kill", "claimed:explode", "claimed", "claimed:kill:often"])
def test_what_cannot_be_armed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"nowhere|explode|claimed|often|expected|unpack|kill"):
        faults.arm(text)
    faults.arm("")


def test_a_place_that_is_not_armed_costs_less_than_a_microsecond() -> None:
    num = 10_000
    best_s = min(timeit(lambda: faults.point(Point.FORWARD), number=num) for _ in range(5))

    assert best_s / num < 1e-6


def test_what_is_armed_happens_at_the_time_that_was_named_and_only_then() -> None:
    faults.arm("claimed:full:2,told:oom")
    faults.point(Point.CLAIMED)
    with pytest.raises(OSError, match="No space left"):
        faults.point(Point.CLAIMED)
    faults.point(Point.CLAIMED)
    with pytest.raises(MemoryError):
        faults.point(Point.TOLD)
    faults.arm("")

    faults.point(Point.CLAIMED)
