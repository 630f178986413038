from __future__ import annotations

import math

import pytest
import torch

from caesura.training.losses import cross_entropy, ipo_losses, sigmoid_losses


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


RATIOS_N2 = torch.tensor([[1.5, -0.5], [0.25, 1.0]])


def test_the_loss_of_a_pair_is_minus_the_log_sigmoid_of_its_margin() -> None:
    first, second = sigmoid_losses(RATIOS_N2, beta=0.5, label_smoothing=0.0).tolist()

    # Margins: 0.5 · 2 = 1 and 0.5 · -0.75 = -0.375.
    assert first == pytest.approx(math.log(1 + math.exp(-1)))
    assert second == pytest.approx(math.log(1 + math.exp(0.375)))


def test_label_smoothing_takes_that_share_of_the_labels_to_be_the_wrong_way_round() -> None:
    right, wrong = (sigmoid_losses(ratios, 0.5, 0.0) for ratios in (RATIOS_N2, RATIOS_N2.flip(1)))

    torch.testing.assert_close(sigmoid_losses(RATIOS_N2, 0.5, 0.2), 0.8 * right + 0.2 * wrong)


def test_ipo_wants_the_margin_per_token_to_be_half_of_one_over_beta() -> None:
    losses = ipo_losses(RATIOS_N2, torch.tensor([[3, 5], [1, 4]]), beta=0.5)

    # (1.5/3 + 0.5/5 - 1)² and (0.25/1 - 1/4 - 1)².
    assert losses.tolist() == pytest.approx([0.16, 1.0])
