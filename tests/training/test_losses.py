from __future__ import annotations

import math

import pytest
import torch

from caesura.training.losses import cross_entropy


def test_cross_entropy_is_the_mean_negative_log_probability_of_the_learned_tokens() -> None:
    logprobs_BK = torch.tensor([[math.log(0.5), math.log(0.25)], [math.log(0.125), -99.0]])
    mask_BK = torch.tensor([[1.0, 1.0], [1.0, 0.0]])

    # (ln 2 + ln 4 + ln 8) / 3 = 2 ln 2
    assert cross_entropy(logprobs_BK, mask_BK, 3).item() == pytest.approx(2 * math.log(2))


def test_cutting_a_step_into_micro_batches_does_not_change_its_loss() -> None:
    logprobs_BK = -torch.rand(4, 7)
    mask_BK = (torch.rand(4, 7) < 0.5).float()
    num_tokens = mask_BK.sum().item()

    whole = cross_entropy(logprobs_BK, mask_BK, num_tokens)
    parts = sum(cross_entropy(logprobs_BK[rows], mask_BK[rows], num_tokens) for rows in ([0], [1, 2], [3]))

    assert float(parts) == pytest.approx(whole.item())
