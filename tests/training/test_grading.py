"""Grades in a thread of their own: in their turn, waited for where a judge is away, broken off when that is asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import CancelledError
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from caesura.graders.grade import Grader, GraderFault, Observation, Score, observe_text
from caesura.training import grading
from caesura.training.grading import Grading

PATIENCE_S = 60


@dataclass
class Scripted:
    """Answers by `then`, called with the number of the call, and counts who is in it."""

    then: Callable[[int], Score] = lambda _: Score(1.0)
    gate: asyncio.Event | None = None
    name: str = "scripted"
    type: str = "python"
    calls: int = 0
    inside: int = 0
    most_inside: int = 0
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    async def score(self, observation: Observation) -> Score:
        self.calls += 1
        number = self.calls
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.entered.release()
        try:
            if self.gate is not None:
                await self.gate.wait()
            return self.then(number)
        finally:
            self.inside -= 1


def open_scripted(
    grader: Scripted, closed: threading.Event | None = None
) -> Callable[[], AbstractAsyncContextManager[Grader]]:
    @asynccontextmanager
    async def open_grader() -> AsyncGenerator[Grader, None]:
        yield grader
        if closed is not None:
            closed.set()

    return open_grader


def grading_of(grader: Scripted, told: list[str] | None = None, closed: threading.Event | None = None) -> Grading:
    words = [] if told is None else told
    return Grading(open_scripted(grader, closed), words.append)


def open_gate(running: Grading, grader: Scripted) -> None:
    """In the loop, to which an event of it belongs."""

    async def open_it() -> None:
        assert grader.gate is not None
        grader.gate.set()

    running.run(open_it()).result(PATIENCE_S)


ANSWER = observe_text("42", {})


def unreachable(number: int) -> Score:
    raise GraderFault("model_grader_server_error", details=f"down, try {number}", is_unreachable=True)


def test_no_more_are_graded_at_a_time_than_allowed() -> None:
    grader = Scripted(gate=asyncio.Event())
    with grading_of(grader) as running:
        futures = [running.submit(ANSWER) for _ in range(3 * grading.MAX_CONCURRENT_GRADES)]
        for _ in range(grading.MAX_CONCURRENT_GRADES):
            assert grader.entered.acquire(timeout=PATIENCE_S)
        open_gate(running, grader)

        assert [future.result(PATIENCE_S).reward for future in futures] == [1.0] * len(futures)
    assert grader.most_inside == grading.MAX_CONCURRENT_GRADES


def test_a_model_that_cannot_be_reached_is_waited_for_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "RETRY_S", (0.001, 0.002))
    told: list[str] = []
    grader = Scripted(lambda number: unreachable(number) if number < 5 else Score(0.75))
    with grading_of(grader, told) as running:
        assert running.submit(ANSWER).result(PATIENCE_S).reward == 0.75
        assert told == ["down, try 1"]

        grader.then = lambda number: unreachable(number) if number < 8 else Score(0.5)
        assert running.submit(ANSWER).result(PATIENCE_S).reward == 0.5
    assert told == ["down, try 1", "down, try 6"]


def test_what_is_a_grade_all_the_same_is_not_asked_for_again() -> None:
    def refuse(number: int) -> Score:
        raise GraderFault("model_grader_server_error", details="it does not know this model")

    grader = Scripted(refuse)
    with grading_of(grader) as running:
        grade = running.submit(ANSWER).result(PATIENCE_S)

    assert grade.score.faults == {"model_grader_server_error": "it does not know this model"}
    assert grader.calls == 1


def test_to_cancel_breaks_off_what_runs_what_waits_and_what_waits_for_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "RETRY_S", (1000.0, 1000.0))
    is_told = threading.Event()
    hanging = Scripted(gate=asyncio.Event())
    with Grading(open_scripted(hanging), lambda _: is_told.set()) as running:
        futures = [running.submit(ANSWER) for _ in range(grading.MAX_CONCURRENT_GRADES + 1)]
        assert hanging.entered.acquire(timeout=PATIENCE_S)
        running.cancel()
        for future in futures:
            with pytest.raises(CancelledError):
                future.result(PATIENCE_S)
        open_gate(running, hanging)
        hanging.then = unreachable
        waiting = running.submit(ANSWER)
        assert is_told.wait(PATIENCE_S)  # that it waits for the model
        hanging.then = lambda _: Score(1.0)
        running.cancel()
        with pytest.raises(CancelledError):
            waiting.result(PATIENCE_S)
        assert running.submit(ANSWER).result(PATIENCE_S).reward == 1.0


def test_it_ends_though_grades_hang_and_closes_what_it_opened() -> None:
    closed = threading.Event()
    hanging = Scripted(gate=asyncio.Event())
    with grading_of(hanging, closed=closed) as running:
        running.submit(ANSWER)
        assert hanging.entered.acquire(timeout=PATIENCE_S)

    assert closed.is_set()
    assert not running._thread.is_alive()


def test_a_grader_that_cannot_be_opened_is_told_where_it_was_to_be_used() -> None:
    @asynccontextmanager
    async def open_grader() -> AsyncGenerator[Grader, None]:
        raise ValueError("no such judge")
        yield

    with pytest.raises(ValueError, match="no such judge"), Grading(open_grader, print):
        raise AssertionError("it was not opened")
