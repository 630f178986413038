"""Where a job's training stands, from step to step: what it has trained on, whether a limit is reached, whether it is
over, and when it will be."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from caesura.jobs import VALIDATION_LOSS, Job, Level, Told
from caesura.store.jobs import Jobs
from caesura.store.rows import Telling
from caesura.training.method import Method
from caesura.training.plan import Plan
from caesura.training.state import State
from caesura.training.stopping import EarlyStopping
from caesura.training.trainer import StepResult
from caesura.training.work import Work
from caesura.worker.pace import MEMORY_SHARE, MIN_MEMORY, Pace

#: The event of a pause at `max_tokens`, which a job makes once.
_TOKENS_REACHED = "max_tokens"


class Course:
    """Sees every step that is done. When the training is over is a function of the steps' metrics alone, so that a job
    that was disturbed ends after the same step.

    `num_tokens`: of the steps up to `step`; `trained_s`: how long the job has trained since it was started or last
    resumed, `num_resumes` times by now; `left`: what there is to do after `step`; `max_minutes` and `max_tokens`: the
    limits that still hold.
    """

    def __init__(
        self,
        plan: Plan,
        step: int,
        num_tokens: int,
        trained_s: float,
        num_resumes: int,
        left: Work,
        pace: Pace,
        max_minutes: float | None = None,
        max_tokens: int | None = None,
        early_stopping: EarlyStopping | None = None,
    ) -> None:
        self.num_tokens = num_tokens
        self._plan = plan
        self._step = step
        self._trained_s = trained_s
        self._num_resumes = num_resumes
        self._left = left
        self._pace = pace
        self._max_minutes = max_minutes
        self._max_tokens = max_tokens
        self._early_stopping = early_stopping
        #: What the clock showed when `_trained_s` was right, and when the last step was seen.
        self._counted_s = self._seen_s = time.monotonic()
        #: Whether there is a checkpoint to make after that step.
        self._is_to_save = False

    def see(self, result: StepResult, done: Work) -> None:
        """`done`: what the step had to do."""
        self._step = result.step
        self._count()
        self._see_pace(result, done)
        self.num_tokens += result.num_tokens
        self.recall(result.step, result.metrics)

    def recall(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take notice of what was measured of a step, be it of this attempt or of one before."""
        if self._early_stopping is not None and self._plan.makes_checkpoint(step):
            self._early_stopping.see(metrics.get(VALIDATION_LOSS, math.inf))

    @property
    def is_over(self) -> bool:
        is_stopped = self._early_stopping is not None and self._early_stopping.is_over
        return is_stopped or self._step >= self._plan.num_steps

    def tell_of_end(self) -> list[Telling]:
        """What there is to tell of it once it is over."""
        stopping = self._early_stopping
        if stopping is None or not stopping.is_over or self._step >= self._plan.num_steps:
            return []
        words = Told.STOPPED.format(
            step=self._step, best=stopping.best, min_delta=stopping.min_delta, num=stopping.num_without_gain
        )
        return [Telling(words, key="stopped")]

    def tell_of_limit(self) -> Telling | None:
        """What there is to tell of a limit that is reached at this step, where the job is to pause; else None."""
        if self._max_tokens is not None and self.num_tokens >= self._max_tokens:
            words = Told.MAX_TOKENS.format(num_tokens=self.num_tokens, max_tokens=self._max_tokens, step=self._step)
            return Telling(words, Level.WARN, key=_TOKENS_REACHED)
        minutes = self._trained_s / 60
        if self._max_minutes is not None and minutes >= self._max_minutes:
            words = Told.MAX_MINUTES.format(minutes=minutes, max_minutes=self._max_minutes, step=self._step)
            return Telling(words, Level.WARN)
        return None

    def measure(self) -> dict[str, float]:
        """What belongs to the training state of this moment, for `open_course`."""
        self._count()
        return {"trained_s": self._trained_s, "num_resumes": self._num_resumes, **self._pace.capture()}

    def finish_at(self) -> int:
        """When the training will be over at the present pace, Unix seconds. Some step must have been seen."""
        left = replace(self._left, checkpoints=self._left.checkpoints + self._is_to_save)
        return int(time.time() + self._pace.seconds_for(left)) + 1

    def _see_pace(self, result: StepResult, done: Work) -> None:
        self._left = self._left.less(done)
        now_s = time.monotonic()
        whole_s, self._seen_s = now_s - self._seen_s, now_s
        # What is not the step itself is the checkpoint before it, if there was one.
        saved, self._is_to_save = self._is_to_save, done.checkpoints > 0
        other_s = whole_s - result.train_s - result.validation_s
        seconds = Work(result.train_s + (0.0 if saved else other_s), result.validation_s, other_s)
        self._pace.see(replace(done, checkpoints=float(saved)), seconds)

    def _count(self) -> None:
        now_s = time.monotonic()
        self._trained_s += now_s - self._counted_s
        self._counted_s = now_s


def open_course(jobs: Jobs, job: Job, plan: Plan, method: Method, state: State) -> Course:
    """The course of a training that goes on from `state`, with what earlier attempts have told of it."""
    told = [metrics for metrics in jobs.list_metrics(job.id) if metrics["step"] <= state.step]
    num_resumes = jobs.count_told(job.id, Told.RESUMED)
    is_same_run = state.measured.get("num_resumes") == num_resumes
    is_lifted = jobs.was_told(job.id, _TOKENS_REACHED)
    stopping = job.extras.get("early_stopping")
    pace = Pace(max(MIN_MEMORY, MEMORY_SHARE * plan.num_steps))
    pace.recall(state.measured)
    course = Course(
        plan,
        state.step,
        sum(metrics.get("completion_tokens_count", 0) for metrics in told) or method.num_tokens_until(state.step),
        state.measured["trained_s"] if is_same_run else 0.0,
        num_resumes,
        method.work_after(state.step),
        pace,
        job.extras.get("max_minutes"),
        None if is_lifted else job.extras.get("max_tokens"),
        None if stopping is None else EarlyStopping(stopping["patience"], stopping["min_delta"]),
    )
    for metrics in told:
        course.recall(metrics["step"], metrics)
    return course
