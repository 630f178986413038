"""When a job will end, as it tells while it runs: against a clock that the test drives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from caesura.jobs import Job, Status
from caesura.training.preference import Preference
from caesura.training.rows import Rows as TrainingRows
from caesura.training.supervised import Supervised
from caesura.training.trainer import StepResult
from caesura.training.work import Work
from caesura.worker.keeper import Keeper
from caesura.worker.pace import VALIDATION_SHARE, Pace
from caesura.worker.saver import Saver
from tests.worker.disturb import Rows, at_step
from tests.world import World, example_rows

Told = list[tuple[int, float, int]]
#: An estimate may be off by so much of what is left, and by as many seconds, to which it is rounded.
SHARE, ROUNDING_S = 0.2, 2.0


class Clock:
    """Every step takes `train(tokens)` seconds and every validation `validate(tokens)`; a save takes `save_s`."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0
        self.train: Callable[[int], float] = lambda num_tokens: 0.5 * num_tokens
        self.validate: Callable[[int], float] = lambda num_tokens: 0.2 * num_tokens
        self.save_s = 0.0
        #: Step, when it was told, and the end that was told with it.
        self.told: Told = []

    def check(self, first: int) -> None:
        """Every estimate from step `first` on was right, now that the job has ended."""
        assert self.told
        for step, now_s, finish_at in self.told:
            left_s = self.now_s - now_s
            assert step < first or abs(finish_at - self.now_s) <= SHARE * left_s + ROUNDING_S, (step, self.told)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    originals = Supervised.backward, Supervised.validate, Supervised.validate_fully, Keeper.record, Saver.save

    def count(rows: Any) -> int:
        return sum(row.num_tokens for row in rows)

    def backward(self: Any, model: Any, step: int) -> Any:
        clock.now_s += sum(clock.train(row.num_tokens) for row in self.rows_of_step(step))
        return originals[0](self, model, step)

    def validate(self: Any, model: Any, step: int) -> Any:
        clock.now_s += clock.validate(count(self._rows.validated_at(step)))
        return originals[1](self, model, step)

    def validate_fully(self: Any, model: Any, step: int) -> Any:
        clock.now_s += clock.validate(count(self._rows.validated_fully_at(step)))
        return originals[2](self, model, step)

    def record(self: Keeper, result: StepResult, finish_at: int) -> None:
        clock.told.append((result.step, clock.now_s, finish_at))
        originals[3](self, result, finish_at)

    def save(self: Saver, *values: Any) -> None:
        clock.now_s += clock.save_s
        originals[4](self, *values)

    with monkeypatch.context() as patch:
        for owner, function in [(Supervised, backward), (Supervised, validate), (Supervised, validate_fully)]:
            patch.setattr(owner, function.__name__, function)
        patch.setattr(Keeper, "record", record)
        patch.setattr(Saver, "save", save)
        for name in ("time", "monotonic", "perf_counter"):
            patch.setattr(time, name, lambda: clock.now_s)
        yield clock


@pytest.fixture
def uneven() -> Rows:
    """Most rows are short, and some are twenty times as long."""
    rows = example_rows("style_train.jsonl")[:60]
    for row in rows[::7]:
        row["messages"][-1] = {"role": "assistant", "content": "many words " * 100}
    return rows


def create(world: World, *rows: Rows, **extras: Any) -> Job:
    return world.create_job(*rows, batch_size=2, n_epochs=2, extras=extras)


def test_of_steps_that_take_long_where_their_rows_are_long(world: World, uneven: Rows, clock: Clock) -> None:
    assert world.run(create(world, uneven)).status is Status.SUCCEEDED

    clock.check(first=6)
    assert [step for step, _, _ in clock.told] == list(range(1, 61))


def test_of_rows_that_take_more_than_their_share_where_they_are_long(world: World, uneven: Rows, clock: Clock) -> None:
    clock.train = lambda num_tokens: 0.5 * num_tokens * (1 + num_tokens / 1000)
    world.run(create(world, uneven))

    whole_s = clock.now_s - clock.told[0][1]
    for _, _, finish_at in clock.told[6:]:
        assert abs(finish_at - clock.now_s) <= SHARE * whole_s


@pytest.mark.parametrize("extras", [{}, {"checkpoint_every": 7}], ids=str)
def test_of_validations_that_take_longer_than_the_training(
    world: World, training: Rows, clock: Clock, extras: dict[str, Any]
) -> None:
    validation = example_rows("style_train.jsonl")[:120]
    clock.validate = lambda num_tokens: 0.22 * num_tokens
    world.run(create(world, training, validation, **extras))

    clock.check(first=3)


def test_of_checkpoints_that_take_long_once_one_was_made(world: World, training: Rows, clock: Clock) -> None:
    clock.save_s = 500.0
    world.run(create(world, training, checkpoint_every=4))

    clock.check(first=5)


def test_a_pause_and_a_slow_first_step_do_not_disturb_it(
    world: World, uneven: Rows, validation: Rows, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    job = create(world, uneven, validation)
    stopping = threading.Event()
    at_step(monkeypatch, 20, stopping.set)
    world.run(job, stopping=stopping)
    assert world.store.jobs.get(job.id).status is Status.QUEUED
    clock.told.clear()
    clock.now_s += 100_000.0
    steady = clock.train

    def is_slow_once(num_tokens: int) -> float:
        clock.train = steady
        return 60.0 + steady(num_tokens)

    clock.train = is_slow_once
    world.run(job)

    assert clock.told[0][0] == 21
    clock.check(first=21)


def test_a_slow_first_step_of_a_job_is_forgotten_with_the_second(world: World, training: Rows, clock: Clock) -> None:
    steady = clock.train

    def is_slow_once(num_tokens: int) -> float:
        clock.train = steady
        return 600.0 + steady(num_tokens)

    clock.train = is_slow_once
    world.run(create(world, training))

    clock.check(first=2)


def test_a_machine_that_has_become_slow_is_noticed(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    def slow_down() -> None:
        clock.train = lambda num_tokens: 2.0 * num_tokens

    at_step(monkeypatch, 10, slow_down)
    world.run(world.create_job(training, batch_size=1, n_epochs=3))

    clock.check(first=35)


def test_pace_forgets_and_is_taken_up_by_the_next_process() -> None:
    pace = Pace(memory=10.0)
    for _ in range(5):
        pace.see(Work(100, 0, 0), Work(50.0, 0.0, 0.0))
    assert pace.seconds_for(Work(10, 10, 1)) == pytest.approx(5.0 + VALIDATION_SHARE * 5.0)
    pace.see(Work(100, 20, 1), Work(50.0, 4.0, 3.0))

    next_one = Pace(memory=10.0)
    next_one.recall(pace.capture())
    next_one.see(Work(100, 0, 0), Work(5000.0, 0.0, 0.0))  # its first step

    assert next_one.seconds_for(Work(10, 10, 1)) == pytest.approx(5.0 + 2.0 + 3.0)


def test_the_work_of_all_steps_is_what_is_left_before_the_first(
    world: World, training: Rows, validation: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    for method in (Supervised, Preference):
        original = method.__init__

        def remember(self: Any, rows: TrainingRows[Any], plan: Any, *more: Any, original: Any = original) -> None:
            seen.append((self, plan))
            original(self, rows, plan, *more)

        monkeypatch.setattr(method, "__init__", remember)
    pairs = [example_rows(f"preference_{name}.jsonl")[:10] for name in ("train", "validation")]
    world.run(world.create_job(training, validation, batch_size=3, n_epochs=2, extras={"checkpoint_every": 4}))
    world.run(world.create_job(*pairs, method="dpo", batch_size=3, n_epochs=2))

    assert len(seen) == 2
    for method, plan in seen:
        left = method.work_after(0)
        for step in range(1, plan.num_steps + 1):
            left = left.less(method.work_of(step))
            assert [left.train, left.validation, left.checkpoints] == pytest.approx(
                [getattr(method.work_after(step), kind) for kind in ("train", "validation", "checkpoints")]
            )
        assert left.train == pytest.approx(0.0)
