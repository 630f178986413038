from __future__ import annotations

import math

import pytest
import torch

from caesura.training.losses import (
    cross_entropy,
    group_advantages,
    ipo_losses,
    kl_estimates,
    policy_gradient_losses,
    sampling_weights,
    sigmoid_losses,
)


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


def test_an_advantage_is_the_distance_from_the_groups_mean_in_standard_deviations() -> None:
    # Mean 0.5; the deviation of a sample is the root of (0.25 + 0.25 + 0 + 0) / 3.
    deviation = math.sqrt(0.5 / 3) + 1e-4

    advantages = group_advantages(torch.tensor([1.0, 0.0, 0.5, 0.5]))

    assert advantages.tolist() == pytest.approx([0.5 / deviation, -0.5 / deviation, 0.0, 0.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.2, 2.0, -2.4),
        (1.5, 2.0, -2.56),  # held at 1.28
        (0.5, 2.0, -1.0),  # a good token that became unlikely is pulled back without a bound
        (0.9, -1.0, 0.9),
        (0.5, -1.0, 0.8),  # held at 0.8
        (1.5, -1.0, 1.5),  # and a bad one that became likely too
    ],
)
def test_a_tokens_ratio_is_clipped_where_it_went_far_enough(ratio: float, advantage: float, expected: float) -> None:
    old = torch.tensor([-2.0])
    now = (old + math.log(ratio)).requires_grad_()

    (loss,) = policy_gradient_losses(now, old, torch.tensor([advantage]), 0.2, 0.28)
    loss.backward()

    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert now.grad is not None
    is_clipped = expected not in (pytest.approx(-ratio * advantage),)
    assert now.grad.item() == pytest.approx(0.0 if is_clipped else -ratio * advantage, rel=1e-5)


def test_a_kl_estimate_is_0_where_the_two_agree_and_positive_elsewhere() -> None:
    now = torch.tensor([-1.0, -1.0, -1.0])

    estimates = kl_estimates(now, now, torch.tensor([-1.0, -2.0, -0.5]))

    assert estimates.tolist() == pytest.approx([0.0, math.exp(-1) + 1 - 1, math.exp(0.5) - 0.5 - 1], abs=1e-6)


def test_a_kl_estimate_weighs_a_token_by_how_much_likelier_it_has_become() -> None:
    (estimate,) = kl_estimates(torch.tensor([-1.0]), torch.tensor([-1.5]), torch.tensor([-2.0]))

    assert estimate.item() == pytest.approx(math.exp(0.5) * math.exp(-1))


def test_what_the_sampler_drew_too_rarely_weighs_more_up_to_a_bound() -> None:
    weights = sampling_weights(torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.0, -1.5, -3.0]), 2.0)

    assert weights.tolist() == pytest.approx([1.0, math.exp(0.5), 2.0])
