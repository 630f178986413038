"""Supervised fine-tuning: rows into batches, cross-entropy on the assistant's tokens."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from caesura.data.render import Example
from caesura.training.losses import cross_entropy, mean_losses
from caesura.training.method import Details, Metrics, RowLoss
from caesura.training.plan import Plan
from caesura.training.row_batch import Scores, score, split_rows
from caesura.training.rows import Rows
from caesura.training.work import Work

_KEPT = "row_losses"


class Supervised:
    """A method. All that changes from step to step is what it has seen of the rows. `flat`: compute them one after
    another, without padding; it changes rounding alone."""

    num_updates = 1
    may_be_interrupted = False

    def __init__(self, rows: Rows[Example], plan: Plan, flat: bool) -> None:
        self._rows = rows
        self._prompt_weight = plan.prompt_loss_weight or 0.0
        self._plan = plan
        self._flat = flat
        self._device = torch.device(plan.device)
        #: By the row's place in the training file; not a number where it was not trained on yet.
        self._row_losses_R = torch.full((len(rows.training),), torch.nan)
        self._places = {row.line: place for place, row in enumerate(rows.training)}

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
        num_tokens = _count_learned(rows, self._prompt_weight)
        loss, num_correct = torch.zeros((), device=self._device), torch.zeros((), device=self._device)
        for group in self._groups(rows):
            scores = score(model, group, self._prompt_weight, self._flat, self._device)
            part = cross_entropy(scores.logprobs_K, scores.weights_K, num_tokens)
            part.backward()
            loss += part.detach()
            num_correct += _count_correct(scores)
            self._keep(group, scores)
        return _metrics(loss.item(), num_correct.item(), num_tokens)

    def validate(self, model: nn.Module, step: int) -> Metrics | None:
        return self._score(model, self._rows.validated_at(step))

    def validate_fully(self, model: nn.Module, step: int) -> Metrics | None:
        return self._score(model, self._rows.validated_fully_at(step))

    def describe(self, step: int) -> Details | None:
        return None

    def row_losses(self) -> Sequence[RowLoss]:
        losses: list[float] = self._row_losses_R.tolist()
        trained = [
            RowLoss(row.line, row.num_loss_tokens, loss)
            for row, loss in zip(self._rows.training, losses, strict=True)
            if math.isfinite(loss)
        ]
        return sorted(trained, key=lambda row: row.line)

    def capture(self) -> dict[str, Tensor]:
        return {_KEPT: self._row_losses_R}

    def restore(self, kept: dict[str, Tensor]) -> bool:
        if _KEPT in kept:
            self._row_losses_R = kept[_KEPT].clone()
        return True

    def _keep(self, rows: Sequence[Example], scores: Scores) -> None:
        losses = mean_losses(scores.logprobs_K.detach(), scores.weights_K, scores.lengths)
        self._row_losses_R[[self._places[row.line] for row in rows]] = losses.cpu()

    @torch.no_grad()
    def _score(self, model: nn.Module, rows: Sequence[Example]) -> Metrics | None:
        if not rows:
            return None
        num_tokens = _count_learned(rows)
        loss, num_correct = 0.0, 0.0
        for group in self._groups(rows):
            scores = score(model, group, 0.0, self._flat, self._device)
            loss += cross_entropy(scores.logprobs_K, scores.weights_K, num_tokens).item()
            num_correct += _count_correct(scores).item()
        return _metrics(loss, num_correct, num_tokens)

    def _groups(self, rows: Sequence[Example]) -> list[list[Example]]:
        """The rows of each pass."""
        return split_rows([row for row in rows if row.teaches], self._plan.micro_batch_tokens, self._flat)


def _count_learned(rows: Sequence[Example], prompt_weight: float = 0.0) -> float:
    """The learned tokens, and the weights of the others in rows that teach; nothing predicts a first token."""
    num_learned = sum(row.num_loss_tokens for row in rows)
    num_others = sum(row.num_tokens - 1 - row.num_loss_tokens for row in rows if row.teaches)
    return max(1, num_learned + prompt_weight * num_others)


def _count_correct(scores: Scores) -> Tensor:
    return (scores.correct_K * scores.weights_K).sum()


def _metrics(loss: float, num_correct: float, num_tokens: float) -> Metrics:
    return {"loss": loss, "mean_token_accuracy": num_correct / num_tokens}
