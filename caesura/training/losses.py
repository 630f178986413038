"""Losses: pure functions of log-probabilities and a batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

#: Keeps the advantages of answers that are all but equally good from growing beyond all bounds.
MIN_SPREAD = 1e-4


def cross_entropy(logprobs_K: Tensor, weights_K: Tensor, num_tokens: float) -> Tensor:
    """-Σ w log p over tokens that count w, divided by `num_tokens`: the tokens, so counted, of the whole step, so that
    cutting a step into micro-batches does not change it."""
    return -(logprobs_K * weights_K).sum() / num_tokens


def mean_losses(logprobs_K: Tensor, weights_K: Tensor, lengths: Sequence[int]) -> Tensor:
    """-Σ w log p of each row's tokens, divided by their Σ w; rows have these lengths and follow one another."""
    return -sums_of_runs(logprobs_K * weights_K, lengths) / sums_of_runs(weights_K, lengths)


def sums_of_runs(values_K: Tensor, lengths: Sequence[int]) -> Tensor:
    """The sum of each run of `values_K`; runs have these lengths and follow one another."""
    ends = list(accumulate(lengths))
    return torch.stack([values_K[end - length : end].sum() for end, length in zip(ends, lengths, strict=True)])


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


def group_advantages(rewards_G: Tensor) -> Tensor:
    """How much better each answer to one prompt is than their mean, in standard deviations: (r - mean) / (std + 1e-4).

    Shao et al. 2024, arXiv:2402.03300 (GRPO), section 4.1.2; the deviation is that of a sample, with G - 1.
    """
    return (rewards_G - rewards_G.mean()) / (rewards_G.std() + MIN_SPREAD)


def policy_gradient_losses(
    logprobs_K: Tensor, old_logprobs_K: Tensor, advantages_K: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """The loss of each token: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = π(token) / π_old(token).

    Schulman et al. 2017, arXiv:1707.06347 (PPO), equation 7, with bounds of their own above and below: Yu et al. 2025,
    arXiv:2503.14476 (DAPO), section 3.1. Divided by the tokens of the whole step, as there in section 3.3, a token
    weighs the same in an answer of any length.
    """
    ratios_K = torch.exp(logprobs_K - old_logprobs_K)
    clipped_K = ratios_K.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratios_K * advantages_K, clipped_K * advantages_K)


def kl_estimates(logprobs_K: Tensor, old_logprobs_K: Tensor, reference_logprobs_K: Tensor) -> Tensor:
    """An estimate of KL(π, π_ref) from each token that π_old drew: π / π_old (π_ref / π - log(π_ref / π) - 1).

    Schulman 2020, "Approximating KL divergence" (k3), as in GRPO's equation 4; with the first factor, which is 1 where
    π is π_old, its gradient is that of the divergence too (DeepSeek-AI 2025, arXiv:2512.02556, section 3.1).
    """
    log_ratios_K = reference_logprobs_K - logprobs_K
    return torch.exp(logprobs_K - old_logprobs_K) * (torch.exp(log_ratios_K) - log_ratios_K - 1)


def sampling_weights(old_logprobs_K: Tensor, sampled_logprobs_K: Tensor, max_weight: float) -> Tensor:
    """What mends the drift of the sampler from the policy: min(π_old(token) / π_sampler(token), `max_weight`).

    Truncated importance sampling (Ionides 2008, https://doi.org/10.1198/106186008X320456).
    """
    return torch.exp(old_logprobs_K - sampled_logprobs_K).clamp(max=max_weight)
