"""Hostile graders, each in up to four worlds: root or an ordinary user, with namespaces or without.

An attack comes to what it must, the host is as it was, and the next call on the same sandbox is answered rightly. So
that a sandbox is not praised for stopping what could never work, many of the attacks also run without one, by an
ordinary user and where they do no harm: there they must succeed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest

from caesura.graders.sandbox import Level
from tests.failure.sandbox.attacks import ATTACKS
from tests.failure.sandbox.runner import LIMITS
from tests.failure.sandbox.worlds import CONFINED, UNCONFINED, Run, World, run_attacks

#: A call may take this much longer than its limit, on a busy machine too.
MOST_DELAY_S = 5.0

PAIRS = [
    pytest.param(world, name, id=f"{world.name}-{name}")
    for world in CONFINED
    for name, attack in ATTACKS.items()
    if world.level in attack.levels
]
REAL = [
    pytest.param(UNCONFINED, name, id=f"{UNCONFINED.name}-{name}") for name, attack in ATTACKS.items() if attack.is_real
]


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest) -> Callable[[World], Run]:
    """What came of all attacks that are asked for in a world: they run together, once."""

    @functools.cache
    def run(world: World) -> Run:
        params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
        return run_attacks(world, [each["name"] for each in params if each.get("world") == world and "name" in each])

    return run


def result_of(run: Run, name: str) -> dict[str, Any]:
    if run.unreachable is not None:
        pytest.skip(run.unreachable)
    assert name in run.results, f"the attack was not run; the runner's last words: {run.messages[-2000:]}"
    return run.results[name]


def skip_without(world: World) -> None:
    if (obstacle := world.obstacle()) is not None:
        pytest.skip(obstacle)


@pytest.mark.parametrize(("world", "name"), PAIRS)
def test_an_attack_comes_to_what_it_must_and_leaves_no_trace(
    world: World, name: str, runs: Callable[[World], Run]
) -> None:
    skip_without(world)
    result = result_of(runs(world), name)

    assert re.fullmatch(ATTACKS[name].outcome, result["outcome"], re.DOTALL), result
    assert result["damage"] == []
    assert result["seconds"] < LIMITS.wall_clock_s + MOST_DELAY_S


@pytest.mark.parametrize(("world", "name"), REAL)
def test_an_attack_succeeds_where_nothing_holds_it(world: World, name: str, runs: Callable[[World], Run]) -> None:
    assert result_of(runs(world), name)["outcome"] == "1.0"


@pytest.mark.parametrize("world", CONFINED, ids=lambda world: world.name)
def test_a_sandbox_that_is_closed_leaves_nothing(world: World) -> None:
    skip_without(world)
    run = run_attacks(world, ["forks", "sleeps"])

    assert result_of(run, "forks")
    assert run.left == []
    assert run.messages == ""


def test_the_suite_is_large_and_many_of_its_attacks_are_real() -> None:
    for level in (Level.STRONG, Level.KERNEL):
        assert sum(level in attack.levels for attack in ATTACKS.values()) > 500
    assert len(REAL) > 150
