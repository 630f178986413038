"""Losses: pure functions of log-probabilities and a batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logprobs_BK: Tensor, mask_BK: Tensor, num_tokens: float) -> Tensor:
    """-Σ log p over the learned tokens, divided by `num_tokens`: the learned tokens of the whole step, so that
    cutting a step into micro-batches does not change it."""
    return -(logprobs_BK * mask_BK).sum() / num_tokens


def sigmoid_losses(ratios_N2: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """The loss of each pair: -log sigmoid(β (r₊ - r₋)), r = log π(answer) - log π_ref(answer), preferred first.

    Rafailov et al. 2023, arXiv:2305.18290, equation 7; with `label_smoothing` ε the share of labels that are taken to
    be the wrong way round, as in Mitchell 2023, "A note on DPO with noisy preferences": (1 - ε) of it and ε of the
    loss of the other way round.
    """
    margins_N = beta * (ratios_N2[:, 0] - ratios_N2[:, 1])
    return -(1 - label_smoothing) * F.logsigmoid(margins_N) - label_smoothing * F.logsigmoid(-margins_N)


def ipo_losses(ratios_N2: Tensor, num_tokens_N2: Tensor, beta: float) -> Tensor:
    """The loss of each pair: (r₊/|y₊| - r₋/|y₋| - 1/(2β))², preferred first.

    Azar et al. 2023, arXiv:2310.12036, equation 17, where β is τ; log-ratios are taken per token, so that the loss
    means the same for answers of any length (as TRL has it, which asked the authors).
    """
    per_token_N2 = ratios_N2 / num_tokens_N2
    return (per_token_N2[:, 0] - per_token_N2[:, 1] - 1 / (2 * beta)) ** 2
