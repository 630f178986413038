"""One save is under way at most: a pause waits for that one and its own, never for more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from caesura.errors import StorageUnavailable
from caesura.jobs import Lease, Reason, Status, TrainingState
from caesura.models.lora import Adapter, name_A, name_B
from caesura.storage import LocalStorage, LocalWriter
from caesura.training.state import State
from caesura.worker.attempt import Training
from caesura.worker.saver import Saver
from tests.world import wait_until

LEASE = Lease("ftjob-1", "token")


class Attempts:
    """Writes down what is committed."""

    def __init__(self) -> None:
        self.committed: list[tuple[int, Reason | None]] = []

    def save(self, _lease: Lease, state: TrainingState, reason: Reason | None = None) -> list[str]:
        self.committed.append((state.step, reason))
        return []

    def status(self, _lease: Lease) -> Status:
        return Status.RUNNING


class Gated(LocalStorage):
    """A disk that takes a blob when it is allowed to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = threading.Event()
        self.num_waiting = 0
        self.fault: Exception | None = None

    def writer(self, key: str) -> LocalWriter:
        self.num_waiting += 1
        assert self.gate.wait(60)
        if self.fault is not None:
            raise self.fault
        return super().writer(key)


@pytest.fixture
def storage(tmp_path: Path) -> Gated:
    return Gated(tmp_path)


@pytest.fixture
def attempts() -> Attempts:
    return Attempts()


@pytest.fixture
def saver(attempts: Any, storage: Gated) -> Iterator[Saver]:
    with Saver(attempts, storage, LEASE, "micro", interval_s=0.0, tell=lambda: None) as saver:
        yield saver
        storage.gate.set()


def state_of(step: int) -> State:
    weights = {name_A("layer"): torch.ones(1, 2), name_B("layer"): torch.zeros(2, 1)}
    return State(step, Adapter(1, 2.0, weights), {})


def test_a_step_does_not_wait_for_a_save_and_the_next_save_waits_for_its_turn(
    saver: Saver, attempts: Attempts, storage: Gated
) -> None:
    assert saver.due
    saver.save_in_passing(state_of(1))
    wait_until(lambda: storage.num_waiting == 1, "the save to be under way")
    assert not saver.due  # however long the interval is over
    assert attempts.committed == []

    storage.gate.set()
    saver.wait()
    assert attempts.committed == [(1, None)]
    assert saver.due


def test_a_pause_waits_for_the_save_under_way_and_its_own_alone(
    saver: Saver, attempts: Attempts, storage: Gated
) -> None:
    saver.save_in_passing(state_of(1))
    wait_until(lambda: storage.num_waiting == 1, "the save to be under way")
    pausing = threading.Thread(target=saver.save, args=(state_of(3), Reason.PAUSE))
    pausing.start()
    for _ in range(3):  # steps that go by meanwhile begin no save
        assert not saver.due
    storage.gate.set()
    pausing.join(60)

    assert attempts.committed == [(1, None), (3, Reason.PAUSE)]


def test_a_state_is_captured_once_the_save_under_way_has_ended(
    saver: Saver, attempts: Attempts, storage: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = threading.Event()
    wait = saver.wait

    def tell_and_wait() -> None:
        waiting.set()
        wait()

    class Trainer:
        def capture(self) -> State:
            self.saved = list(attempts.committed)
            return state_of(2)

    class Course:
        def measure(self) -> dict[str, float]:
            return {}

    trainer: Any = Trainer()
    unused: Any = None
    course: Any = Course()
    training = Training(unused, unused, trainer, course, saver)
    saver.save_in_passing(state_of(1))
    wait_until(lambda: storage.num_waiting == 1, "the save to be under way")
    monkeypatch.setattr(saver, "wait", tell_and_wait)
    capturing = threading.Thread(target=training.capture)
    capturing.start()
    wait_until(waiting.is_set, "the capture to wait for the save")
    storage.gate.set()
    capturing.join(60)

    assert trainer.saved == [(1, None)]


def test_a_save_in_passing_that_fails_is_tried_again_with_the_next(
    saver: Saver, attempts: Attempts, storage: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    storage.gate.set()
    storage.fault = StorageUnavailable()
    saver.save_in_passing(state_of(1))
    saver.wait()
    assert "step 1 was not saved" in caplog.text

    storage.fault = None
    saver.save_in_passing(state_of(2))
    saver.wait()
    assert attempts.committed == [(2, None)]
