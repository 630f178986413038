"""Losses: pure functions of log-probabilities and a batch."""

from __future__ import annotations

from torch import Tensor


def cross_entropy(logprobs_BK: Tensor, mask_BK: Tensor, num_tokens: float) -> Tensor:
    """-Σ log p over the learned tokens, divided by `num_tokens`: the learned tokens of the whole step, so that
    cutting a step into micro-batches does not change it."""
    return -(logprobs_BK * mask_BK).sum() / num_tokens
