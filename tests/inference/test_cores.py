from __future__ import annotations

import os
import time

import pytest

from caesura.inference import cores
from caesura.inference.cores import FreeCores, Use, busy_s, num_free

STAT = """cpu  1000 10 500 90000 40 5 6 7 8 9
cpu0 100 1 50 9000 4 2 3 70 8 9
cpu1 200 2 60 8000 5 1 1 80 8 9
cpu2 900 9 90 7000 6 9 9 90 8 9
intr 12345
"""


def test_the_time_used_is_that_of_the_named_cores_without_idle_waiting_stolen_and_guest_time() -> None:
    ticks = os.sysconf("SC_CLK_TCK")

    assert busy_s(STAT, {0}) * ticks == 100 + 1 + 50 + 2 + 3
    assert busy_s(STAT, {0, 1}) * ticks == 156 + 200 + 2 + 60 + 1 + 1


@pytest.mark.parametrize(
    ("all_s", "own_s", "expected"),
    [
        (0.0, 0.0, 4),
        (8.0, 8.0, 4),  # all that is used is ours
        (2.0, 0.0, 3),  # others use one core of four
        (10.0, 4.0, 1),
        (8.0, 0.0, 1),  # all four are taken: one is left all the same
        (2.8, 0.0, 3),  # 1.4 cores
        (1.0, 1.2, 4),  # the two clocks do not agree
    ],
)
def test_what_others_use_is_not_free(all_s: float, own_s: float, expected: int) -> None:
    assert num_free(Use(10.0, 100.0, 50.0), Use(12.0, 100.0 + all_s, 50.0 + own_s), 4) == expected


def test_it_looks_again_after_a_while_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, others_s = 0.0, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    monkeypatch.setattr(cores, "busy_s", lambda stat, cores: others_s + time.process_time())
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    free = FreeCores()
    assert free.count() == 3

    now_s, others_s = 0.4, 0.8
    assert free.count() == 3
    now_s = 0.5
    assert free.count() == 1  # 0.8 s in 0.5 s: 1.6 cores
    now_s = 1.0
    assert free.count() == 3


def test_the_cores_of_this_machine_are_counted() -> None:
    assert 1 <= FreeCores().count() <= len(os.sched_getaffinity(0))
