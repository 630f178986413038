"""The answers of a step: sampled from the policy, graded beside the sampling, and kept until the step is done.

Prompts are sampled from in units, fixed numbers of neighbours, because what shares a batch can change the last bits of
an answer. A unit is done whole or again; a grade, once given, stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

from caesura import faults
from caesura.data.order import derive_seed
from caesura.data.prompt_tokens import PromptTokens
from caesura.faults import Point
from caesura.graders.grade import Grade
from caesura.models.lora import Adapter
from caesura.training.grading import Grading
from caesura.training.method import StepInterrupted
from caesura.training.policy import Policy
from caesura.training.rollouts import Group, Rollout, observe, rollout_from_json, rollout_to_json

#: How long a step that is left waits for the grades under way: they are paid for.
GRACE_S = 5.0
#: How often one that waits for grades looks whether it shall go on.
LOOK_S = 0.05

#: The split, the row's line, and which of its answers.
Key = tuple[str, int, int]


@dataclass(slots=True)
class Timing:
    """Seconds of the step in hand by what they went into. Grading counts only where nothing was sampled meanwhile."""

    sampling: float = 0.0
    grading: float = 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Answers to some prompts: `num_samples` to each, their seeds made of `seed_parts`."""

    split: str
    prompts: Sequence[PromptTokens]
    num_samples: int
    seed_parts: tuple[int | str, ...]

    def keys(self, prompt: PromptTokens) -> list[Key]:
        return [(self.split, prompt.line, index) for index in range(self.num_samples)]

    def seeds(self, prompt: PromptTokens) -> list[int]:
        return [derive_seed(*self.seed_parts, prompt.line, index) for index in range(self.num_samples)]


@dataclass(slots=True)
class Collector:
    """`watch` is called often, and raises StepInterrupted when the step is to be left."""

    policy: Policy[Any]
    grading: Grading
    sampled_together: int
    watch: Callable[[], None]
    _rollouts: dict[Key, Rollout] = field(default_factory=dict[Key, Rollout])
    _grades: dict[Key, Future[Grade]] = field(default_factory=dict[Key, Future[Grade]])
    #: By split, how many units have all their answers.
    _num_units: dict[str, int] = field(default_factory=dict[str, int])

    def collect(self, adapter: Adapter, wanted: Wanted) -> tuple[list[Group], Timing]:
        """A group for each prompt, graded. What is kept of them is not made again. Raises StepInterrupted."""
        timing = Timing()
        began_s = time.perf_counter()
        try:
            self._submit_all(wanted)
            self._sample(adapter, wanted)
            sampled_s = time.perf_counter()
            timing.sampling = sampled_s - began_s
            self._await_grades()
            timing.grading = time.perf_counter() - sampled_s
            faults.point(Point.GRADED)
        except StepInterrupted:
            self._settle()
            raise
        groups = [Group([self._rollouts[key] for key in wanted.keys(prompt)]) for prompt in wanted.prompts]
        return groups, timing

    def forget(self) -> None:
        """The step is done: nothing of it is needed any more."""
        self._rollouts, self._grades, self._num_units = {}, {}, {}

    def capture(self) -> dict[str, Any]:
        self._harvest()
        kept = [{"split": split, **rollout_to_json(own)} for (split, _, _), own in self._rollouts.items()]
        return {"rollouts": kept, "num_units": self._num_units}

    def restore(self, kept: dict[str, Any]) -> None:
        self.forget()
        self._num_units = dict(kept["num_units"])
        for value in kept["rollouts"]:
            split = value.pop("split")
            rollout = rollout_from_json(value)
            self._rollouts[split, rollout.line, rollout.sample_index] = rollout

    def _sample(self, adapter: Adapter, wanted: Wanted) -> None:
        loaded = None
        for number, unit in enumerate(self._units(wanted)):
            if number < self._num_units.get(wanted.split, 0):
                continue
            loaded = loaded or self.policy.load(adapter)
            faults.point(Point.SAMPLING)
            items = {prompt.line: prompt.row.item for prompt in unit}

            def take(rollout: Rollout, items: dict[int, dict[str, Any]] = items) -> None:
                self._take((wanted.split, rollout.line, rollout.sample_index), rollout, items[rollout.line])

            self.policy.sample(loaded, unit, [wanted.seeds(prompt) for prompt in unit], self.watch, take)
            self._num_units[wanted.split] = number + 1

    def _units(self, wanted: Wanted) -> Iterator[Sequence[PromptTokens]]:
        size = max(1, self.sampled_together // wanted.num_samples)
        for start in range(0, len(wanted.prompts), size):
            yield wanted.prompts[start : start + size]

    def _take(self, key: Key, rollout: Rollout, item: dict[str, Any]) -> None:
        """An answer has come; it has come before where its unit was left on the way, and keeps the grade it has."""
        known = self._rollouts.get(key)
        if known is None or known.answer_ids != rollout.answer_ids:
            self._rollouts[key] = rollout
        faults.point(Point.ANSWER_TAKEN)
        self._submit(key, item)

    def _submit_all(self, wanted: Wanted) -> None:
        """Have what is kept without a grade graded."""
        for prompt in wanted.prompts:
            for key in wanted.keys(prompt):
                if key in self._rollouts:
                    self._submit(key, prompt.row.item)

    def _submit(self, key: Key, item: dict[str, Any]) -> None:
        rollout = self._rollouts[key]
        if rollout.grade is None and key not in self._grades:
            self._grades[key] = self.grading.submit(observe(rollout, item))

    def _await_grades(self) -> None:
        while self._grades:
            faults.point(Point.GRADING)
            self.watch()
            wait(self._grades.values(), timeout=LOOK_S)
            self._harvest()

    def _harvest(self) -> None:
        """Take in the grades that have come."""
        for key in [key for key, future in self._grades.items() if future.done()]:
            future = self._grades.pop(key)
            if not future.cancelled():
                self._rollouts[key] = self._rollouts[key].graded(future.result())

    def _settle(self) -> None:
        wait(self._grades.values(), timeout=GRACE_S)
        self._harvest()
        self.grading.cancel()
        self._grades = {}
