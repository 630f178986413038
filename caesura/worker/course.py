"""Where a job's training stands, from step to step: what it has trained on, and whether it is over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from caesura.jobs import VALIDATION_LOSS, Job, Told
from caesura.store.jobs import Jobs
from caesura.store.rows import Telling
from caesura.training.method import Method
from caesura.training.plan import Plan
from caesura.training.stopping import EarlyStopping
from caesura.training.trainer import StepResult


class Course:
    """Sees every step that is done. What it decides is a function of the steps' metrics alone, so that a job that was
    disturbed is over after the same step."""

    def __init__(self, plan: Plan, step: int, num_tokens: int, early_stopping: EarlyStopping | None) -> None:
        self._plan = plan
        self._step = step
        #: Tokens of all steps done. Of a method that tells them with each step, of those since the attempt began.
        self.num_tokens = num_tokens
        self._early_stopping = early_stopping

    def see(self, result: StepResult) -> None:
        self._step = result.step
        self.num_tokens += result.num_tokens
        self.recall(result.step, result.metrics)

    def recall(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take notice of what was measured of a step, be it of this attempt or of one before."""
        if self._early_stopping is not None and self._plan.makes_checkpoint(step):
            self._early_stopping.see(metrics.get(VALIDATION_LOSS, math.inf))

    @property
    def is_over(self) -> bool:
        return self._step >= self._plan.num_steps or self._is_stopped

    @property
    def _is_stopped(self) -> bool:
        return self._early_stopping is not None and self._early_stopping.is_over

    def tell_of_end(self) -> list[Telling]:
        """What there is to tell of it once it is over."""
        stopping = self._early_stopping
        if stopping is None or not stopping.is_over or self._step >= self._plan.num_steps:
            return []
        words = Told.STOPPED.format(
            step=self._step, best=stopping.best, min_delta=stopping.min_delta, num=stopping.num_without_gain
        )
        return [Telling(words, key="stopped")]


def open_course(jobs: Jobs, job: Job, plan: Plan, method: Method, step: int) -> Course:
    """The course of a training that stands at `step`, with what earlier attempts have told of it."""
    asked = job.extras.get("early_stopping")
    early_stopping = None if asked is None else EarlyStopping(asked["patience"], asked["min_delta"])
    course = Course(plan, step, method.num_tokens_until(step), early_stopping)
    if early_stopping is not None:
        for metrics in jobs.list_metrics(job.id):
            if metrics["step"] <= step:
                course.recall(metrics["step"], metrics)
    return course
