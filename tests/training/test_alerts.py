from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from caesura.graders.grade import Flag, Grade, Score
from caesura.training.alerts import Alerts, FailureWatch
from caesura.training.rollouts import Rollout


def data(
    length: float = 10.0,
    reward: float = 0.5,
    without_spread: float = 0.0,
    valid: float | None = None,
    errors: dict[str, float] | None = None,
) -> dict[str, Any]:
    shares = {f"train_{kind}_mean": (errors or {}).get(kind, 0.0) for kind in get_args(Flag)}
    return {
        "completion_tokens_mean": length,
        "train_mean_reward": reward,
        "groups_without_spread_share": without_spread,
        "errors": {**shares, "graders": []},
        **({} if valid is None else {"full_valid_mean_reward": valid}),
    }


def see_all(alerts: Alerts, steps: list[dict[str, Any]]) -> list[list[str]]:
    return [alerts.see(number, step) for number, step in enumerate(steps, start=1)]


def test_groups_without_spread_are_told_above_80_percent_once_until_it_has_gone_away() -> None:
    told = see_all(Alerts(), [data(without_spread=share) for share in (0.8, 0.81, 0.9, 0.5, 1.0)])

    assert [len(words) for words in told] == [0, 1, 0, 0, 1]
    assert told[1][0].startswith("Step 2: in 81% of the groups")


@pytest.mark.parametrize(("last", "is_told"), [(19.9, False), (20.0, True), (5.1, False), (5.0, True)])
def test_answers_that_doubled_or_halved_are_told(last: float, is_told: bool) -> None:
    told = see_all(Alerts(), [data(length=10)] * 5 + [data(length=last)] * 5)

    assert [bool(words) for words in told] == [False] * 9 + [is_told]


def test_a_grader_error_above_5_percent_is_told_by_its_kind() -> None:
    steps = [
        data(errors={"python_grader_runtime_error": 0.05}),
        data(errors={"python_grader_runtime_error": 0.06, "other_error": 0.01}),
        data(errors={"python_grader_runtime_error": 0.5, "other_error": 0.2}),
        data(errors={"truncated_observation_error": 1.0, "unresponsive_reward_error": 1.0, "sample_parse_error": 1.0}),
    ]

    told = see_all(Alerts(), steps)

    assert [len(words) for words in told] == [0, 1, 1, 0]
    assert "Step 2: the grader failed on 6% of the answers (python_grader_runtime_error)" in told[1][0]
    assert "(other_error)" in told[2][0]


def test_a_reward_that_rises_while_validation_falls_is_told() -> None:
    steps = [data(reward=step / 20, valid=(0.5 - step / 100 if step % 3 == 0 else None)) for step in range(1, 11)]

    told = see_all(Alerts(), steps)

    assert [bool(words) for words in told] == [False] * 9 + [True]
    assert "0.15 to 0.40" in told[9][0]
    assert "0.47 to 0.41" in told[9][0]


def test_neither_a_falling_reward_nor_a_rising_validation_is() -> None:
    falling = [data(reward=1 - step / 20, valid=(0.5 - step / 100 if step % 3 == 0 else None)) for step in range(1, 13)]
    rising = [data(reward=step / 20, valid=(0.5 + step / 100 if step % 3 == 0 else None)) for step in range(1, 13)]

    assert not any(see_all(Alerts(), falling))
    assert not any(see_all(Alerts(), rising))


def test_alerts_that_were_captured_and_restored_tell_what_undisturbed_ones_tell() -> None:
    steps = [
        data(length=10 + 3 * step, without_spread=(step % 4) / 3, reward=step / 20, valid=0.9 - step / 50)
        for step in range(12)
    ]
    expected = see_all(Alerts(), steps)
    told: list[list[str]] = []
    alerts = Alerts()
    for number, step in enumerate(steps, start=1):
        told.append(alerts.see(number, step))
        fresh = Alerts()
        fresh.restore(json.loads(json.dumps(alerts.capture())))
        alerts = fresh

    assert told == expected
    assert any(expected)


def test_what_is_kept_of_a_job_does_not_grow_with_its_steps() -> None:
    alerts = Alerts()
    see_all(alerts, [data(length=10, valid=0.5)] * 20)
    before = json.dumps(alerts.capture())
    see_all(alerts, [data(length=10, valid=0.5)] * 200)

    assert json.dumps(alerts.capture()) == before


def test_answers_are_compared_with_the_first_ones_however_slowly_they_grew() -> None:
    told = see_all(Alerts(), [data(length=length) for length in (*[10] * 5, *[15] * 40, *[20] * 5)])

    assert [bool(words) for words in told] == [False] * 49 + [True]
    assert "went from 10 to 20 tokens" in told[-1][0]


def rollouts(*faults: tuple[Flag, str] | None) -> list[Rollout]:
    return [
        Rollout(
            1,
            index,
            [1],
            [2],
            [0.0],
            [1],
            "stop",
            [],
            0,
            Grade("g", "python", Score(0.0, dict([fault] if fault else [])), 0.1),
        )
        for index, fault in enumerate(faults)
    ]


FAILED: tuple[Flag, str] = ("python_grader_runtime_error", "Traceback: ZeroDivisionError")


def test_more_than_half_failed_in_three_steps_in_a_row_is_a_failure_that_quotes_three_errors() -> None:
    watch = FailureWatch()
    step = rollouts(FAILED, ("other_error", "no connection"), None)

    assert watch.see(step) is None
    assert watch.see(step) is None
    words = watch.see(rollouts(FAILED, ("other_error", "a third"), ("other_error", "a fourth")))

    assert words is not None
    for quoted in ("Traceback: ZeroDivisionError", "no connection", "a third"):
        assert quoted in words
    assert "a fourth" not in words


@pytest.mark.parametrize(
    "better",
    [
        rollouts(FAILED, None),
        rollouts(("truncated_observation_error", "cut off"), ("unresponsive_reward_error", "empty")),
    ],
    ids=["half of them", "the answers' own faults"],
)
def test_a_better_step_in_between_begins_anew(better: list[Rollout]) -> None:
    watch = FailureWatch()
    bad = rollouts(FAILED, FAILED, None)

    assert [watch.see(step) is None for step in (bad, bad, better, bad, bad, bad)] == [True] * 5 + [False]


def test_a_watch_that_was_captured_and_restored_counts_on() -> None:
    watch, bad = FailureWatch(), rollouts(FAILED)
    watch.see(bad)
    watch.see(bad)
    fresh = FailureWatch()
    fresh.restore(json.loads(json.dumps(watch.capture())))

    assert fresh.see(bad) is not None
