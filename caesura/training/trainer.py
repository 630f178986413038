"""The step: gradients, the check that they are finite, the optimizer. What happens between steps is the worker's."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from caesura import faults
from caesura.data.order import derive_seed
from caesura.faults import Point
from caesura.jobs import JobError
from caesura.models.loading import Base
from caesura.training.hyperparameters import learning_rate_at
from caesura.training.method import Details, Method, Metrics, StepInterrupted
from caesura.training.plan import Plan
from caesura.training.state import State, copy_to_cpu
from caesura.training.trained import Trained

MAX_GRADIENT_NORM = 1.0
ADAM_BETAS = (0.9, 0.99)
#: After so many steps in a row without a finite loss the job fails.
MAX_NOT_FINITE = 3
#: The failure names this many lines.
NUM_NAMED_LINES = 20
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class TrainingFailed(Exception):
    """The training cannot go on; `error` is what the job says."""

    def __init__(self, error: JobError) -> None:
        self.error = error
        super().__init__(error.message)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step has to tell."""

    step: int
    total_steps: int
    applied: bool
    makes_checkpoint: bool
    #: `train_loss`, `train_mean_token_accuracy`, `valid_loss` …: only what was measured.
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    #: What a method has to tell of its own.
    details: Details | None = None
    learning_rate: float = 0.0
    #: That it trained on.
    num_tokens: int = 0
    #: How long it took, and then its validations: no part of what was computed.
    train_s: float = field(default=0.0, compare=False)
    validation_s: float = field(default=0.0, compare=False)

    def data(self) -> dict[str, Any]:
        """The data of the step's metric event."""
        own = {} if self.details is None else self.details.data
        told = {"step": self.step, "total_steps": self.total_steps, "learning_rate": self.learning_rate}
        if self.train_s:
            told["tokens_per_second"] = round(self.num_tokens / self.train_s, 1)
        return {**told, **self.metrics, **own}

    def message(self) -> str:
        """OpenAI's wording: `Step 31/90: training loss=0.57, validation loss=0.61, full validation loss=0.60`."""
        if self.details is not None:
            return self.details.message
        names = {"train_loss": "training", "valid_loss": "validation", "full_valid_loss": "full validation"}
        losses = [f"{name} loss={self.metrics[key]:.2f}" for key, name in names.items() if key in self.metrics]
        return f"Step {self.step}/{self.total_steps}: " + (", ".join(losses) if self.applied else "not applied")


class Trainer:
    """A model, an optimizer and the number of the last step done."""

    def __init__(self, base: Base, trained: Trained, method: Method, plan: Plan, state: State) -> None:
        self._model: nn.Module = base.model
        self._trained = trained
        self._method = method
        self._plan = plan
        self.num_steps_done = state.step
        #: The state before the step in hand, where that may be left unfinished.
        self._before: State | None = None
        self._load(state)
        #: Whether what the method kept with the state was of no use to it (`Method.restore`).
        self.kept_was_stale = not method.restore(state.kept)

    def step(self) -> StepResult:
        """Do the next step. One whose loss or gradient is not finite changes nothing but the count of such steps.

        Raises StepInterrupted when the step is left on the way: the weights are then as they were before it.
        """
        self._before = self.capture() if self._method.may_be_interrupted else None
        try:
            result = self._step(self.num_steps_done + 1)
        except StepInterrupted:
            assert self._before is not None
            self._load(self._before)
            raise
        finally:
            self._before = None
        self.num_steps_done = result.step
        return result

    def capture(self) -> State:
        """The state after the last step that is done, in memory of its own. In the middle of a step it holds what the
        method has done of that."""
        if self._before is not None:
            return replace(self._before, kept=copy_to_cpu(self._method.capture()))
        tuned = self._trained.get()
        moments = {
            f"{name}.{moment}": self._optimizer.state[parameter][moment]
            for name, parameter in self._parameters.items()
            if parameter in self._optimizer.state
            for moment in _MOMENTS
        }
        return State(
            step=self.num_steps_done,
            adapter=replace(tuned, weights=copy_to_cpu(tuned.weights)),
            optimizer=copy_to_cpu(moments),
            num_not_finite=self._num_not_finite,
            kept=copy_to_cpu(self._method.capture()),
            frozen=self._frozen,
        )

    def _step(self, step: int) -> StepResult:
        measured: Metrics = {}
        applied = True
        began_s = time.perf_counter()
        faults.point(Point.STEP_BEGUN)
        for update in range(self._method.num_updates):
            with self._trained.drawing(derive_seed(self._plan.dropout_seed, step, update)):
                measured = self._method.backward(self._model, step)
            faults.point(Point.GRADIENTS_MADE)
            applied = self._apply(measured["loss"], step)
            if not applied:
                break
        self._num_not_finite = 0 if applied else self._num_not_finite + 1
        trained_s = time.perf_counter()
        metrics = _prefixed("train", measured if applied else None)
        metrics |= _prefixed("valid", self._method.validate(self._model, step))
        metrics |= _prefixed("full_valid", self._method.validate_fully(self._model, step))
        faults.point(Point.STEP_MEASURED)
        validated_s = time.perf_counter()
        makes_checkpoint, details = self._method.makes_checkpoint(step), self._method.describe(step)
        return StepResult(
            step,
            self._plan.num_steps,
            applied,
            makes_checkpoint,
            metrics,
            details,
            self._learning_rate_at(step),
            sum(row.num_tokens for row in self._method.rows_of_step(step)) if details is None else details.num_tokens,
            trained_s - began_s,
            validated_s - trained_s,
        )

    def _apply(self, loss: float, step: int) -> bool:
        """Have the optimizer take the gradients; False where they, or the loss, are not finite and so are dropped."""
        norm = torch.nn.utils.clip_grad_norm_(list(self._parameters.values()), MAX_GRADIENT_NORM).item()
        applied = math.isfinite(loss) and math.isfinite(norm)
        if applied:
            for group in self._optimizer.param_groups:
                group["lr"] = self._learning_rate_at(step)
            self._optimizer.step()
            self._trained.updated()
            faults.point(Point.STEP_APPLIED)
        self._optimizer.zero_grad(set_to_none=True)
        return applied

    def _learning_rate_at(self, step: int) -> float:
        return learning_rate_at(step, self._plan.num_steps, self._plan.learning_rate)

    def _load(self, state: State) -> None:
        """Take up the weights of `state`, and the optimizer's memory of them."""
        self._frozen = state.frozen
        self._parameters = self._trained.load(state)
        self._optimizer = torch.optim.AdamW(
            list(self._parameters.values()), betas=ADAM_BETAS, weight_decay=self._plan.l2_multiplier or 0.0, fused=True
        )
        _load_moments(self._optimizer, self._parameters, state.optimizer)
        self._num_not_finite = state.num_not_finite

    def check_finite(self) -> None:
        """Raises TrainingFailed, naming the rows, when the last steps were all not finite."""
        if self._num_not_finite < MAX_NOT_FINITE:
            return
        last = self.num_steps_done
        steps = range(last - MAX_NOT_FINITE + 1, last + 1)
        rows = [row.line for step in steps for row in self._method.rows_of_step(step)]
        lines = ", ".join(str(line) for line in rows[:NUM_NAMED_LINES])
        raise TrainingFailed(
            JobError(
                "not_finite",
                f"The loss or its gradient was not finite in {MAX_NOT_FINITE} steps in a row, up to step {last} "
                f"(lines {lines} of the training file). Lower learning_rate_multiplier, or look at these lines.",
                "training_file",
            )
        )


def _prefixed(prefix: str, measured: Metrics | None) -> dict[str, float]:
    """The metrics under the names that events have for them; none that nobody measured, and none without a loss."""
    if measured is None or not math.isfinite(measured["loss"]):
        return {}
    return {f"{prefix}_{name}": value for name, value in measured.items()}


def _load_moments(
    optimizer: torch.optim.AdamW, parameters: dict[str, nn.Parameter], moments: dict[str, Tensor]
) -> None:
    for name, parameter in parameters.items():
        if f"{name}.step" in moments:
            optimizer.state[parameter] = {
                moment: moments[f"{name}.{moment}"].to(parameter.device, copy=True) for moment in _MOMENTS
            }
