"""What the trainer asks of a training method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from caesura.training.rows import Rendered

#: What was measured of some rows, by its name without a prefix; the `loss` is always among it.
Metrics = dict[str, float]


class Method(Protocol):
    """Turns the rows of a step into gradients. What it computes is a function of the adapter, the step and the seed."""

    def rows_of_step(self, step: int) -> Sequence[Rendered]:
        """The rows of the 1-based `step`."""
        ...

    def ends_epoch(self, step: int) -> bool: ...

    def backward(self, model: nn.Module, step: int) -> Metrics:
        """Add the gradients of the step's loss to the adapter's."""
        ...

    def validate(self, model: nn.Module, step: int) -> Metrics | None:
        """Score a small batch of validation rows; None where none is due."""
        ...

    def validate_fully(self, model: nn.Module, step: int) -> Metrics | None:
        """Score the whole validation file at the end of an epoch; None elsewhere."""
        ...

    def capture(self) -> dict[str, Tensor]:
        """What the method has computed once and keeps; it belongs to the training state."""
        ...

    def restore(self, kept: dict[str, Tensor]) -> bool:
        """Take up what `capture` gave, of this job or of none; False where it belongs to other weights or rows, and
        so is computed anew."""
        ...
