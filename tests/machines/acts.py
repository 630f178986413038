"""What the machines share: a worker, what comes of an act, acts at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from caesura.errors import CaesuraError
from caesura.jobs import Lease
from caesura.store import Store
from caesura.store.rows import Telling
from tests.machines.expected import reward_at

LEASE_S = 60.0
#: Modules of the store that ask what time it is.
CLOCKS = ("attempts", "jobs", "recovery")


@dataclass(eq=False)
class Worker:
    """One that once held the job. It goes on trying when it does not any more: it does not know."""

    name: str
    lease: Lease
    store: Store
    #: The last step that it has done.
    step: int


Act = Callable[[], Any]
T = TypeVar("T")


def attempt(act: Act) -> Any:
    """What came of it: its value, or the class of the error."""
    try:
        return act()
    except CaesuraError as error:
        return type(error)


def pick(values: list[T], number: int) -> T:
    return values[number % len(values)]


def telling(step: int, of_rewards: bool) -> Telling:
    rewards = {"full_valid_mean_reward": reward_at(step)} if of_rewards else {}
    return Telling(f"Step {step}/99", data={"step": step, **rewards}, type="metrics", key=f"step:{step}")


def together(acts: list[Act]) -> list[Any]:
    """What came of them, done by as many threads that begin at once."""
    barrier = threading.Barrier(len(acts))

    def run(act: Act) -> Any:
        barrier.wait()
        return act()

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(run, acts))
