from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caesura.training.hyperparameters import (
    auto_batch_size,
    auto_epochs,
    auto_multiplier,
    base_learning_rate,
    learning_rate_at,
    resolve,
)


@pytest.mark.parametrize(
    ("num_rows", "epochs"),
    [(10, 10), (4, 25), (33, 3), (34, 3), (80, 3), (8_333, 3), (8_334, 2), (12_500, 2), (30_000, 1)],
)
def test_epochs_follow_the_rule_that_openais_cookbook_found(num_rows: int, epochs: int) -> None:
    assert auto_epochs(num_rows) == epochs


@pytest.mark.parametrize(("num_rows", "batch_size"), [(10, 1), (200, 1), (1000, 2), (5000, 10), (1_000_000, 256)])
def test_a_batch_is_a_five_hundredth_of_the_rows_within_bounds(num_rows: int, batch_size: int) -> None:
    assert auto_batch_size(num_rows) == batch_size


@pytest.mark.parametrize(("batch_size", "multiplier"), [(1, 0.35), (2, 0.5), (8, 1.0), (256, 1.0)])
def test_a_small_batch_lowers_the_rate_by_its_root(batch_size: int, multiplier: float) -> None:
    assert auto_multiplier(batch_size) == multiplier


def test_what_was_asked_for_stays_and_auto_becomes_a_number() -> None:
    resolved = resolve({"n_epochs": 7, "batch_size": "auto", "learning_rate_multiplier": 0.5}, 100)

    assert (resolved.n_epochs, resolved.batch_size, resolved.learning_rate_multiplier) == (7, 1, 0.5)


def test_a_large_model_gets_a_usual_rate_and_the_embedded_base_the_one_measured_best_for_it() -> None:
    assert base_learning_rate(7_000_000_000) == pytest.approx(2e-4)
    assert base_learning_rate(4_213_504) == pytest.approx(5e-3, rel=0.01)


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_a_larger_model_never_gets_a_higher_rate(one: int, other: int) -> None:
    small, large = sorted((one, other))

    assert base_learning_rate(large) <= base_learning_rate(small)


def test_the_rate_rises_to_its_peak_and_falls_towards_zero() -> None:
    rates = [learning_rate_at(step, 100, 1.0) for step in range(1, 101)]

    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.001


@given(st.integers(1, 2000))
def test_every_step_has_a_rate_above_zero_and_at_most_the_peak(num_steps: int) -> None:
    assert all(0 < learning_rate_at(step, num_steps, 0.1) <= 0.1 for step in range(1, num_steps + 1))
