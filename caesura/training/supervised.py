"""Supervised fine-tuning: rows into batches, cross-entropy on the assistant's tokens."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from caesura.data.order import derive_seed, epoch_order
from caesura.data.render import Example
from caesura.training.batch import Batch, make_batch, split_by_tokens
from caesura.training.logprobs import token_logprobs
from caesura.training.losses import cross_entropy
from caesura.training.plan import Plan

#: A small batch of the validation file is scored every so many steps, the whole file at the end of every epoch.
VALIDATION_INTERVAL = 10
MIN_VALIDATION_ROWS = 8


@dataclass(frozen=True, slots=True)
class Score:
    """Mean loss and accuracy over learned tokens."""

    loss: float
    accuracy: float


class Supervised:
    """The method's view of its data. `seed` orders the rows; nothing here changes from step to step."""

    def __init__(self, training: Sequence[Example], validation: Sequence[Example], plan: Plan, seed: int) -> None:
        self._training = training
        self._validation = validation
        self._plan = plan
        self._seed = seed
        self._device = torch.device(plan.device)
        # The order of the epoch in hand: recomputing it at every step would cost more than the step.
        self._order: tuple[int, list[list[int]]] | None = None

    def rows_of_step(self, step: int) -> list[Example]:
        """The rows of the 1-based `step`, a function of the step and the seed."""
        epoch, index = divmod(step - 1, self._plan.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            lengths = [len(example.token_ids) for example in self._training]
            self._order = (epoch, epoch_order(lengths, self._plan.batch_size, self._seed, epoch))
        return [self._training[row] for row in self._order[1][index]]

    def backward(self, model: nn.Module, step: int) -> Score:
        """Add the gradients of the step's loss to the adapter's; returns the loss and the accuracy of its tokens."""
        rows = self.rows_of_step(step)
        num_tokens = max(1, sum(row.num_loss_tokens for row in rows))
        loss = torch.zeros((), device=self._device)
        num_correct = torch.zeros((), device=self._device)
        for batch in self._batches(rows):
            logprobs_BK, correct_BK = token_logprobs(model, batch)
            part = cross_entropy(logprobs_BK, batch.mask_BK, num_tokens)
            part.backward()
            loss += part.detach()
            num_correct += _count(correct_BK, batch)
        return Score(loss.item(), num_correct.item() / num_tokens)

    def validate(self, model: nn.Module, step: int) -> Score | None:
        """Score a small batch of validation rows, chosen by the step; None where none is due."""
        if not self._validation or not (step % VALIDATION_INTERVAL == 0 or self.ends_epoch(step)):
            return None
        num_rows = min(len(self._validation), max(MIN_VALIDATION_ROWS, self._plan.batch_size))
        start = derive_seed(self._seed, "validation", step) % len(self._validation)
        rotated = [*self._validation[start:], *self._validation[:start]]
        return self._score(model, rotated[:num_rows])

    def validate_fully(self, model: nn.Module, step: int) -> Score | None:
        """Score the whole validation file at the end of an epoch; None elsewhere."""
        if not self._validation or not self.ends_epoch(step):
            return None
        return self._score(model, self._validation)

    def ends_epoch(self, step: int) -> bool:
        return step % self._plan.steps_per_epoch == 0

    @torch.no_grad()
    def _score(self, model: nn.Module, rows: Sequence[Example]) -> Score:
        num_tokens = max(1, sum(row.num_loss_tokens for row in rows))
        loss, num_correct = 0.0, 0.0
        for batch in self._batches(rows):
            logprobs_BK, correct_BK = token_logprobs(model, batch)
            loss += cross_entropy(logprobs_BK, batch.mask_BK, num_tokens).item()
            num_correct += _count(correct_BK, batch).item()
        return Score(loss, num_correct / num_tokens)

    def _batches(self, rows: Sequence[Example]) -> list[Batch]:
        taught = [row for row in rows if row.num_loss_tokens]
        return [make_batch(group).to(self._device) for group in split_by_tokens(taught, self._plan.micro_batch_tokens)]


def _count(correct_BK: Tensor, batch: Batch) -> Tensor:
    return (correct_BK * batch.mask_BK).sum()
