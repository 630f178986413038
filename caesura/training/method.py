"""What the trainer asks of a training method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from caesura.training.rows import Rendered
from caesura.training.work import Work

#: What was measured of some rows, by its name without a prefix; the `loss` is always among it.
Metrics = dict[str, float]


class StepInterrupted(Exception):
    """The step is left unfinished. What was done of it is in what the method captures; the step may be done again."""


@dataclass(frozen=True, slots=True)
class Details:
    """What a step has to tell beyond its metrics."""

    #: The step's event: what it says, and the data beside the metrics.
    message: str
    data: dict[str, Any]
    #: That the step trained on.
    num_tokens: int
    #: Answers of the step, as the API tells them.
    rollouts: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    warnings: list[str] = field(default_factory=list[str])
    #: Why the job should not go on like this.
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class RowLoss:
    """The mean loss of a training row over its learned tokens, when it was last trained on: as the weights were then,
    before that step changed them."""

    line: int
    num_tokens: int
    loss: float


class Method(Protocol):
    """Turns the rows of a step into gradients. What it computes is a function of the adapter, the step and the seed."""

    @property
    def num_updates(self) -> int:
        """How many times the weights are changed in a step."""
        ...

    @property
    def may_be_interrupted(self) -> bool:
        """Whether a step may end in StepInterrupted."""
        ...

    def rows_of_step(self, step: int) -> Sequence[Rendered]:
        """The rows of the 1-based `step`."""
        ...

    def makes_checkpoint(self, step: int) -> bool:
        """Whether the model after the step is kept."""
        ...

    def num_tokens_until(self, step: int) -> int:
        """Tokens that the steps up to `step` train on; 0 of a method that cannot know them beforehand, and tells them
        with each step."""
        ...

    def work_of(self, step: int) -> Work:
        """What the step has to do, with the validations and the checkpoint after it."""
        ...

    def work_after(self, step: int) -> Work:
        """What is left to do when the step is done."""
        ...

    def backward(self, model: nn.Module, step: int) -> Metrics:
        """Add the gradients of the step's loss to the adapter's; called anew for each update of the step.

        Raises StepInterrupted, at the first update alone.
        """
        ...

    def validate(self, model: nn.Module, step: int) -> Metrics | None:
        """Score a small batch of validation rows; None where none is due."""
        ...

    def validate_fully(self, model: nn.Module, step: int) -> Metrics | None:
        """Score the whole validation file where a checkpoint is made; None elsewhere. Raises StepInterrupted."""
        ...

    def describe(self, step: int) -> Details | None:
        """What is told of the step, which is done; None: what is told of every step."""
        ...

    def row_losses(self) -> Sequence[RowLoss]:
        """Of the rows that were trained on, by line; none of a method that does not learn rows one by one."""
        ...

    def capture(self) -> dict[str, Tensor]:
        """What the method has computed once and keeps; it belongs to the training state."""
        ...

    def restore(self, kept: dict[str, Tensor]) -> bool:
        """Take up what `capture` gave, of this job or of none; False where it belongs to other weights or rows, and
        so is computed anew."""
        ...
