"""Which rows a step learns from, and which are validated after it: functions of the step and the seed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Generic, Protocol, TypeVar

from caesura.data.order import derive_seed, epoch_order
from caesura.training.plan import Plan
from caesura.training.work import Work

#: A small batch of the validation file is scored every so many steps, the whole file where a checkpoint is made.
VALIDATION_INTERVAL = 10
MIN_VALIDATION_ROWS = 8


class Rendered(Protocol):
    """A row as tokens."""

    @property
    def line(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_truncated(self) -> int: ...

    @property
    def teaches(self) -> bool:
        """Whether the row has anything to learn from."""
        ...


R = TypeVar("R", bound=Rendered)


class Rows(Generic[R]):
    """The rendered rows of a job's files in the order that `seed` gives them."""

    def __init__(self, training: Sequence[R], validation: Sequence[R], plan: Plan, seed: int) -> None:
        self.training = training
        self.validation = validation
        self._plan = plan
        self._seed = seed
        # The order of the epoch in hand: recomputing it at every step would cost more than the step.
        self._order: tuple[int, list[list[int]]] | None = None

    @property
    def num_training_tokens(self) -> int:
        """Of all training rows, as truncated: what one epoch trains on."""
        return sum(row.num_tokens for row in self.training)

    def of_step(self, step: int) -> list[R]:
        """The rows of the 1-based `step`."""
        epoch, index = divmod(step - 1, self._plan.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            lengths = [row.num_tokens for row in self.training]
            self._order = (epoch, epoch_order(lengths, self._plan.batch_size, self._seed, epoch))
        return [self.training[row] for row in self._order[1][index]]

    def num_tokens_until(self, step: int) -> int:
        """Of the rows of all steps up to `step`, as truncated."""
        num_epochs, num_more = divmod(step, self._plan.steps_per_epoch)
        more = (row for later in range(step - num_more + 1, step + 1) for row in self.of_step(later))
        return num_epochs * self.num_training_tokens + sum(row.num_tokens for row in more)

    def work_of(self, step: int) -> Work:
        """In tokens."""
        num_tokens = sum(row.num_tokens for row in self.of_step(step))
        return Work(num_tokens, self._num_validated(step) * self._mean_validated, self._is_saved(step))

    def work_after(self, step: int) -> Work:
        """In tokens."""
        later = range(step + 1, self._plan.num_steps + 1)
        return Work(
            self._plan.n_epochs * self.num_training_tokens - self.num_tokens_until(step),
            sum(map(self._num_validated, later)) * self._mean_validated,
            sum(map(self._is_saved, later)),
        )

    def _is_saved(self, step: int) -> bool:
        """The last step's model is the final one, and no checkpoint."""
        return self._plan.makes_checkpoint(step) and step < self._plan.num_steps

    def _num_validated(self, step: int) -> int:
        """How many rows are validated after the step."""
        num_in_full = len(self.validation) if self._plan.makes_checkpoint(step) else 0
        return num_in_full + (self._num_in_part if self._is_validated_in_part(step) else 0)

    @cached_property
    def _mean_validated(self) -> float:
        """Tokens of a row of the validation file."""
        return sum(row.num_tokens for row in self.validation) / max(1, len(self.validation))

    @property
    def _num_in_part(self) -> int:
        return min(len(self.validation), max(MIN_VALIDATION_ROWS, self._plan.batch_size))

    def _is_validated_in_part(self, step: int) -> bool:
        return step % VALIDATION_INTERVAL == 0 or self._plan.ends_epoch(step)

    def validated_at(self, step: int) -> Sequence[R]:
        """A small batch of validation rows, chosen by the step; none where none is due."""
        if not self.validation or not self._is_validated_in_part(step):
            return ()
        start = derive_seed(self._seed, "validation", step) % len(self.validation)
        return [*self.validation[start:], *self.validation[:start]][: self._num_in_part]

    def validated_fully_at(self, step: int) -> Sequence[R]:
        """The whole validation file where a checkpoint is made; nothing elsewhere."""
        return self.validation if self._plan.makes_checkpoint(step) else ()
