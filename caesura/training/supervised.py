"""Supervised fine-tuning: rows into batches, cross-entropy on the assistant's tokens."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from caesura.data.render import Example
from caesura.training.batch import Batch, make_batch, split_by_tokens
from caesura.training.logprobs import token_logprobs
from caesura.training.losses import cross_entropy
from caesura.training.method import Details, Metrics
from caesura.training.plan import Plan
from caesura.training.rows import Rows
from caesura.training.work import Work


class Supervised:
    """A method. Nothing here changes from step to step."""

    num_updates = 1
    may_be_interrupted = False

    def __init__(self, rows: Rows[Example], plan: Plan) -> None:
        self._rows = rows
        self._plan = plan
        self._micro_batch_tokens = plan.micro_batch_tokens
        self._device = torch.device(plan.device)

    def rows_of_step(self, step: int) -> list[Example]:
        return self._rows.of_step(step)

    def makes_checkpoint(self, step: int) -> bool:
        return self._plan.makes_checkpoint(step)

    def num_tokens_until(self, step: int) -> int:
        return self._rows.num_tokens_until(step)

    def work_of(self, step: int) -> Work:
        return self._rows.work_of(step)

    def work_after(self, step: int) -> Work:
        return self._rows.work_after(step)

    def backward(self, model: nn.Module, step: int) -> Metrics:
        rows = self.rows_of_step(step)
        num_tokens = _count_learned(rows)
        loss = torch.zeros((), device=self._device)
        num_correct = torch.zeros((), device=self._device)
        for batch in self._batches(rows):
            logprobs_BK, correct_BK = token_logprobs(model, batch)
            part = cross_entropy(logprobs_BK, batch.mask_BK, num_tokens)
            part.backward()
            loss += part.detach()
            num_correct += _count_correct(correct_BK, batch)
        return _metrics(loss.item(), num_correct.item(), num_tokens)

    def validate(self, model: nn.Module, step: int) -> Metrics | None:
        return self._score(model, self._rows.validated_at(step))

    def validate_fully(self, model: nn.Module, step: int) -> Metrics | None:
        return self._score(model, self._rows.validated_fully_at(step))

    def describe(self, step: int) -> Details | None:
        return None

    def capture(self) -> dict[str, Tensor]:
        return {}

    def restore(self, kept: dict[str, Tensor]) -> bool:
        return not kept

    @torch.no_grad()
    def _score(self, model: nn.Module, rows: Sequence[Example]) -> Metrics | None:
        if not rows:
            return None
        num_tokens = _count_learned(rows)
        loss, num_correct = 0.0, 0.0
        for batch in self._batches(rows):
            logprobs_BK, correct_BK = token_logprobs(model, batch)
            loss += cross_entropy(logprobs_BK, batch.mask_BK, num_tokens).item()
            num_correct += _count_correct(correct_BK, batch).item()
        return _metrics(loss, num_correct, num_tokens)

    def _batches(self, rows: Sequence[Example]) -> list[Batch]:
        taught = [row for row in rows if row.teaches]
        return [make_batch(group).to(self._device) for group in split_by_tokens(taught, self._micro_batch_tokens)]


def _count_learned(rows: Sequence[Example]) -> int:
    return max(1, sum(row.num_loss_tokens for row in rows))


def _count_correct(correct_BK: Tensor, batch: Batch) -> Tensor:
    return (correct_BK * batch.mask_BK).sum()


def _metrics(loss: float, num_correct: float, num_tokens: int) -> Metrics:
    return {"loss": loss, "mean_token_accuracy": num_correct / num_tokens}
