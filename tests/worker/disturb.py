"""Ways to disturb an attempt, at a place of the test's choice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from caesura.jobs import Job, Lease, Status
from caesura.store.attempts import Attempts
from caesura.training.method import Metrics
from caesura.training.preference import Preference
from caesura.training.supervised import Supervised
from caesura.training.trainer import StepResult, Trainer
from caesura.worker import keeper
from tests.world import World

Rows = list[dict[str, Any]]
#: 20 rows in batches of 4, two epochs.
STEPS_PER_EPOCH, NUM_STEPS = 5, 10


#: What a model of random weights can be held to, and a grader that likes about half of it.
REINFORCEMENT: dict[str, Any] = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "letters",
            "schema": {
                "type": "object",
                "properties": {"x": {"enum": ["a", "b", "ca", "dddddd"]}},
                "required": ["x"],
                "additionalProperties": False,
            },
        },
    },
    "grader": {
        "type": "string_check",
        "name": "likes_a",
        "input": "{{ sample.output_json.x }}",
        "reference": "a",
        "operation": "like",
    },
}
#: Every step is a small one, every second is validated after, and the weights change twice in each.
FEW_SHORT_ANSWERS: dict[str, Any] = {
    "compute_multiplier": 0.5,
    "max_completion_tokens": 16,
    "eval_interval": 2,
    "updates_per_batch": 2,
    "kl_coefficient": 0.1,
}


def to_prompts(rows: Rows) -> Rows:
    """Chats without their answers, which graders may look at instead."""
    return [{"messages": row["messages"][:-1], "answer": row["messages"][-1]["content"]} for row in rows]


def validated(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
    """Have the full validations after these steps come to these losses."""
    for method in (Supervised, Preference):
        original = method.validate_fully

        def validate_fully(
            self: Any, model: Any, step: int, original: Callable[..., Metrics | None] = original
        ) -> Metrics | None:
            measured = original(self, model, step)
            return measured if measured is None or step not in losses else {**measured, "loss": losses[step]}

        monkeypatch.setattr(method, "validate_fully", validate_fully)


class Crash(BaseException):
    """The process ends here, as by SIGKILL: nothing after it runs."""


def create(world: World, training: Rows, validation: Rows | None = None, **values: Any) -> Job:
    return world.create_job(training, validation, batch_size=4, n_epochs=2, **values)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, then: Callable[[], None]) -> None:
    """Call `then` when the trainer has done `step`, once."""
    original = Trainer.step
    pending = [then]

    def stepping(trainer: Trainer) -> StepResult:
        result = original(trainer)
        if result.step == step and pending:
            pending.pop()()
        return result

    monkeypatch.setattr(Trainer, "step", stepping)


def pause_at(monkeypatch: pytest.MonkeyPatch, world: World, job: Job, step: int) -> None:
    """Have the job paused while `step` is in hand, and the worker hear of it before the step ends."""
    heard = threading.Event()
    original = Attempts.status

    def status(attempts: Attempts, lease: Lease) -> Status:
        status = original(attempts, lease)
        if status is Status.PAUSING:
            heard.set()
        return status

    def pause() -> None:
        world.store.jobs.pause(job.id)
        assert heard.wait(60)
        # The keeper sets what it heard just after the call that we saw return; its next call comes after that.
        heard.clear()
        assert heard.wait(60)

    monkeypatch.setattr(keeper, "BEAT_S", 0.01)
    monkeypatch.setattr(Attempts, "status", status)
    at_step(monkeypatch, step, pause)


def crash_in(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, after: bool, call: int = 1) -> None:
    """End the process just before or just after the `call`th call of `owner.name`."""
    original = getattr(owner, name)
    calls = [0]

    def crashing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and not after:
            raise Crash
        result = original(*args, **kwargs)
        if calls[0] == call and after:
            raise Crash
        return result

    monkeypatch.setattr(owner, name, crashing)


#: Where a worker may die, and how many training states it has committed by then.
CRASHES: dict[str, tuple[type, str, bool, int]] = {
    "after the claim": (Attempts, "claim", True, 1),
    "before the plan is recorded": (Attempts, "set_plan", False, 1),
    "after the plan is recorded": (Attempts, "set_plan", True, 1),
    "before the third step": (Trainer, "step", False, 3),
    "after the third step": (Trainer, "step", True, 3),
    "between the blobs of a state and its row": (Attempts, "save", False, 1),
    "after the row of a state": (Attempts, "save", True, 1),
    "after an epoch": (Trainer, "step", True, STEPS_PER_EPOCH + 2),
    "between the blobs of the final model and its row": (Attempts, "finish", False, 1),
}
