from __future__ import annotations

from math import inf, nan

import pytest

from caesura.training.stopping import EarlyStopping


def num_seen(losses: list[float], patience: int, min_delta: float = 0.0) -> int | None:
    """After how many of the losses it is over."""
    stopping = EarlyStopping(patience, min_delta)
    for number, loss in enumerate(losses, 1):
        stopping.see(loss)
        if stopping.is_over:
            return number
    return None


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "number"),
    [
        ([3, 2, 1, 0.5, 0.4], 1, 0.0, None),
        ([3, 2, 2.5], 1, 0.0, 3),
        ([3, 2, 2.5], 2, 0.0, None),
        ([3, 2, 2.5, 2.1], 2, 0.0, 4),  # 2.1 is better than the one before, not than the best
        ([3, 2, 2.5, 1.9, 2.0, 2.0], 2, 0.0, 6),  # 1.9 begins the count anew
        ([3, 2, 2, 2], 2, 0.0, 4),  # as good is not better
        ([3, 2.95, 2.91], 2, 0.1, 3),  # 0.05 and 0.09 below 3
        ([3, 2.95, 2.89], 2, 0.1, None),  # together they are more than 0.1
        ([3, 2.875], 1, 0.125, 2),  # by more than min_delta, not by it
        ([3, nan, inf], 2, 0.0, 3),
        ([nan, 3, nan], 2, 0.0, None),
    ],
)
def test_it_is_over_after_so_many_validations_without_gain_in_a_row(
    losses: list[float], patience: int, min_delta: float, number: int | None
) -> None:
    assert num_seen(losses, patience, min_delta) == number
