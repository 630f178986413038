"""What a test changes in a child before it begins; each is called there without arguments."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from caesura import scheduler
from caesura.store.jobs import Jobs
from caesura.training import logprobs, plan, supervised
from caesura.training.trainer import StepResult, Trainer
from caesura.worker import keeper, patience
from caesura.worker.keeper import Keeper


def look_often() -> None:
    """The keeper beats a thousand times a second, and what is waited for is tried again soon."""
    keeper.BEAT_S = 0.001
    patience.RETRY_S = (0.01, 0.1)


def sample_in_small_units() -> None:
    """Two prompts at a time, so that a step may have some units that are done and some that are not."""
    plan.SAMPLED_TOGETHER["cpu"] = 8


def _after_step(step: int, then: Callable[[], None]) -> None:
    original = Trainer.step

    def stepping(trainer: Trainer) -> StepResult:
        result = original(trainer)
        if result.step == step:
            then()
        return result

    Trainer.step = stepping  # type: ignore[method-assign]


def _hear_at_once() -> None:
    """At every step boundary the worker knows what the job's row says."""

    def check(self: Keeper) -> None:
        self._status = self._attempts.status(self._lease)

    Keeper.check = check  # type: ignore[method-assign]


class PauseAfter:
    """The job is paused by somebody else while step `step` is in hand."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self) -> None:
        _hear_at_once()
        original = Keeper.__enter__
        keepers: list[Keeper] = []

        def enter(keeper: Keeper) -> Keeper:
            keepers.append(keeper)
            return original(keeper)

        Keeper.__enter__ = enter  # type: ignore[method-assign]

        def pause() -> None:
            database = keepers[0]._attempts._database
            Jobs(database).pause(keepers[0]._lease.job_id)

        _after_step(self.step, pause)


class SetClock:
    """The clock is moved by so many seconds after a step."""

    def __init__(self, **seconds_after: float) -> None:
        self.seconds_after = {int(name.removeprefix("step_")): seconds for name, seconds in seconds_after.items()}

    def __call__(self) -> None:
        real, offset = time.time, [0.0]
        for step, seconds in self.seconds_after.items():
            _after_step(step, lambda seconds=seconds: offset.__setitem__(0, seconds))
        time.time = lambda: real() + offset[0]  # type: ignore[assignment]


def lose_the_loss() -> None:
    """Every loss is no number."""

    def not_a_number(logprobs: Any, _mask: Any, _num_tokens: float) -> Any:
        return (logprobs * float("nan")).sum()

    supervised.cross_entropy = not_a_number  # type: ignore[assignment]


def ask_for_too_much() -> None:
    """Every forward pass needs more memory than any machine has."""

    def forward_logits(*_: Any, **__: Any) -> Any:
        return torch.empty(2**50)

    logprobs.forward_logits = forward_logits  # type: ignore[assignment]


def sweep_often() -> None:
    """The server sweeps at every tick, and spares nothing that is young."""
    scheduler.SWEEP_INTERVAL_S = 0.0
    scheduler.SWEEP_GRACE_S = -1e9
