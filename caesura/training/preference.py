"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290): preferred answers against rejected ones."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from caesura.data.pairs import Pair
from caesura.training.batch import make_batch
from caesura.training.logprobs import flat_logprobs, token_logprobs
from caesura.training.losses import ipo_losses, sigmoid_losses, sums_of_runs
from caesura.training.method import Details, Metrics, RowLoss
from caesura.training.pair_batch import make_flat_pairs, split_pairs
from caesura.training.plan import Plan
from caesura.training.reference import Reference
from caesura.training.rows import Rows
from caesura.training.work import Work

#: What is measured of pairs, in the order of `_Sums`; the mean over pairs, but for the tokens' accuracy.
_OF_PAIRS = ("loss", "reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected")

#: In the first epoch every pair takes so much longer: the reference says what it says of it then. With the embedded
#: base it was up to 0.2, where products of matrices are all that counts it is a half: an estimate of three epochs is
#: off by 16 % at most.
REFERENCE_SHARE = 0.3


class Preference:
    """A method. `sharing`: compute what the sides of a pair begin with once; it changes rounding alone."""

    num_updates = 1
    may_be_interrupted = False

    def __init__(self, rows: Rows[Pair], plan: Plan, reference: Reference, sharing: bool) -> None:
        self._rows = rows
        self._plan = plan
        self._reference = reference
        self._sharing = sharing
        self._device = torch.device(plan.device)

    def rows_of_step(self, step: int) -> list[Pair]:
        return self._rows.of_step(step)

    def makes_checkpoint(self, step: int) -> bool:
        return self._plan.makes_checkpoint(step)

    def num_tokens_until(self, step: int) -> int:
        return self._rows.num_tokens_until(step)

    def work_of(self, step: int) -> Work:
        work = self._rows.work_of(step)
        if step > self._plan.steps_per_epoch:
            return work
        return replace(work, train=work.train * (1 + REFERENCE_SHARE))

    def work_after(self, step: int) -> Work:
        work = self._rows.work_after(step)
        in_first = max(0, self._rows.num_training_tokens - self._rows.num_tokens_until(step))
        return replace(work, train=work.train + REFERENCE_SHARE * in_first)

    def backward(self, model: nn.Module, step: int) -> Metrics:
        return self._measure(model, self.rows_of_step(step))

    @torch.no_grad()
    def validate(self, model: nn.Module, step: int) -> Metrics | None:
        rows = self._rows.validated_at(step)
        return self._measure(model, rows) if rows else None

    @torch.no_grad()
    def validate_fully(self, model: nn.Module, step: int) -> Metrics | None:
        rows = self._rows.validated_fully_at(step)
        return self._measure(model, rows) if rows else None

    def describe(self, step: int) -> Details | None:
        return None

    def row_losses(self) -> Sequence[RowLoss]:
        return ()

    def capture(self) -> dict[str, Tensor]:
        return self._reference.capture()

    def restore(self, kept: dict[str, Tensor]) -> bool:
        return self._reference.restore(kept)

    def _measure(self, model: nn.Module, rows: Sequence[Pair]) -> Metrics:
        """The metrics of the rows; where gradients are enabled, the loss's are added to the adapter's."""
        taught = [pair for pair in rows if pair.teaches]
        num_pairs, num_tokens = max(1, len(taught)), max(1, sum(pair.preferred.num_loss_tokens for pair in taught))
        sums = dict.fromkeys(_OF_PAIRS, 0.0)
        num_correct = 0.0
        for pairs in split_pairs(taught, self._plan.micro_batch_tokens, self._sharing):
            # Before the policy's own pass, whose activations would else be in memory beside it.
            reference_N2 = self._reference.logprobs(pairs, lambda new: self._logprobs(model, new)[0])
            logprobs_N2, correct = self._logprobs(model, pairs)
            ratios_N2 = logprobs_N2 - reference_N2.to(self._device)
            losses_N = self._losses(ratios_N2, pairs)
            if torch.is_grad_enabled():
                (losses_N.sum() / num_pairs).backward()
            num_correct += correct.item()
            for name, value in zip(_OF_PAIRS, self._sums(losses_N.detach(), ratios_N2.detach()), strict=True):
                sums[name] += value
        means = {name: value / num_pairs for name, value in sums.items()}
        return {"loss": means.pop("loss"), "mean_token_accuracy": num_correct / num_tokens, **means}

    def _losses(self, ratios_N2: Tensor, pairs: Sequence[Pair]) -> Tensor:
        beta, label_smoothing = self._plan.beta, self._plan.label_smoothing
        assert beta is not None
        assert label_smoothing is not None
        if self._plan.loss_type == "ipo":
            num_tokens = [[side.num_loss_tokens for side in pair.sides] for pair in pairs]
            return ipo_losses(ratios_N2, torch.tensor(num_tokens, device=self._device), beta)
        return sigmoid_losses(ratios_N2, beta, label_smoothing)

    def _sums(self, losses_N: Tensor, ratios_N2: Tensor) -> Sequence[float]:
        assert self._plan.beta is not None
        rewards_N2 = self._plan.beta * ratios_N2
        chosen_N, rejected_N = rewards_N2.unbind(1)
        measured = (losses_N, (chosen_N > rejected_N).float(), chosen_N - rejected_N, chosen_N, rejected_N)
        return [values_N.sum().item() for values_N in measured]

    def _logprobs(self, model: nn.Module, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """log π of both sides of each pair, [N, 2], and how many of the preferred sides' tokens come first."""
        if self._sharing:
            batch = make_flat_pairs(pairs, self._device)
            logprobs_K, correct_K = flat_logprobs(model, batch.flat)
            sums_N2 = sums_of_runs(logprobs_K, batch.num_compared).view(-1, 2)
            return sums_N2, sums_of_runs(correct_K.float(), batch.num_compared)[::2].sum()
        padded = make_batch([side for pair in pairs for side in pair.sides]).to(self._device)
        logprobs_BK, correct_BK = token_logprobs(model, padded)
        sums_N2 = (logprobs_BK * padded.mask_BK).sum(1).view(-1, 2)
        return sums_N2, (correct_BK * padded.mask_BK)[::2].sum()
