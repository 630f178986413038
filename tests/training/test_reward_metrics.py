from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caesura.graders.grade import Grade, Score, TokenUsage
from caesura.training.reward_metrics import describe_step, measure, rollout_record
from caesura.training.rollouts import Rollout

PAGE = Path(__file__).parents[2] / "docs" / "reinforcement.md"
TIMING = {"sampling": 1.0, "full_iteration": 2.0}


def rollout(grade: Grade, own: int = 3, reasoning: int = 0) -> Rollout:
    """An answer of `own` tokens of the model and one of a tool."""
    num = own + 1
    return Rollout(
        7, 2, [1, 2], [5] * num, [-1.0] * num, [1] * own + [0], "stop", [{"role": "assistant"}], reasoning, grade
    )


def check(reward: float, **faults: str) -> Grade:
    return Grade("exact", "string_check", Score(reward, dict(faults)), 0.25)  # type: ignore[arg-type]


def judge(reward: float, prompt: int, completion: int) -> Grade:
    usage = {"gpt": TokenUsage(prompt, completion, 1)}
    return Grade("judge", "score_model", Score(reward, {}, usage, "gpt-5"), 0.5)


def test_rewards_and_tokens_have_both_names() -> None:
    train = [rollout(check(1.0), own=3, reasoning=1), rollout(check(0.0), own=5), rollout(check(0.5), own=4)]
    valid = [rollout(check(1.0), own=2), rollout(check(0.0, sample_parse_error="no JSON"), own=4, reasoning=3)]

    data = measure(train, valid, TIMING)

    expected = {
        "train_mean_reward": 0.5,
        "train_reward_mean": 0.5,
        "full_valid_mean_reward": 0.5,
        "valid_reward_mean": 0.5,
        "full_valid_mean_parse_error": 0.5,
        "mean_unresponsive_rewards": 0.0,
        "completion_tokens_mean": 4.0,
        "completion_tokens_count": 12,
        "reasoning_tokens_mean": pytest.approx(1 / 3),
        "valid_completion_tokens_mean": 3.0,
        "valid_reasoning_tokens_mean": 1.5,
    }
    assert {name: data[name] for name in expected} == expected
    assert data["scores"] == {
        "train_reward_mean": 0.5,
        "valid_reward_mean": 0.5,
        "graders": [{"name": "exact", "type": "string_check", "train_reward_mean": 0.5, "valid_reward_mean": 0.5}],
    }
    assert data["usage"]["samples"] == {
        "train_reasoning_tokens_mean": pytest.approx(1 / 3),
        "train_reasoning_tokens_count": 1,
        "valid_reasoning_tokens_mean": 1.5,
        "valid_reasoning_tokens_count": 3,
    }
    assert data["timing"]["step"] == TIMING
    assert data["timing"]["graders"] == [
        {
            "name": "exact",
            "type": "string_check",
            "train_execution_latency_mean": 0.25,
            "valid_execution_latency_mean": 0.25,
        }
    ]


def test_where_nothing_was_validated_nothing_is_told_of_it() -> None:
    data = measure([rollout(check(1.0))], None, TIMING)

    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    assert not {key for key in keys(data) if "valid" in key and key != "invalid_variable_error"} - {
        key for key in keys(data) if "invalid" in key
    }


def test_unresponsive_answers_are_those_that_were_empty_or_cut_off() -> None:
    train = [
        rollout(check(0.0, truncated_observation_error="cut")),
        rollout(check(0.0, unresponsive_reward_error="empty")),
        rollout(check(0.0, other_error="x")),
        rollout(check(1.0)),
    ]

    assert measure(train, None, TIMING)["mean_unresponsive_rewards"] == 0.5


def test_errors_are_counted_by_kind() -> None:
    (grader,) = measure([rollout(check(0.0, other_error="x")), *[rollout(check(1.0))] * 3], None, TIMING)["errors"][
        "graders"
    ]

    assert grader["name"] == "exact"
    assert (grader["train_other_error_count"], grader["train_other_error_mean"]) == (1, 0.25)
    assert (grader["train_python_grader_runtime_error_count"], grader["train_sample_parse_error_mean"]) == (0, 0.0)


def test_a_formula_that_fails_and_answers_that_no_part_saw_are_told_of_the_whole() -> None:
    part = {"exact": check(1.0)}
    failed = Grade("both", "multi", Score(0.0, {"other_error": "division by zero"}, parts=part), 0.5)
    cut_off = Grade("both", "multi", Score(0.0, {"truncated_observation_error": "cut"}), 0.5)

    data = measure([rollout(failed), *[rollout(cut_off)] * 3], [rollout(cut_off)], TIMING)

    errors = data["errors"]
    assert (errors["train_other_error_mean"], errors["train_other_error_count"]) == (0.25, 1)
    assert (errors["train_truncated_observation_error_mean"], errors["train_truncated_observation_error_count"]) == (
        0.75,
        3,
    )
    assert errors["valid_truncated_observation_error_mean"] == 1.0
    assert errors["train_python_grader_runtime_error_mean"] == 0.0


def test_means_of_a_part_are_per_answer_also_where_it_did_not_see_them_all() -> None:
    seen = Grade("both", "multi", Score(1.0, parts={"judge": judge(1.0, 8, 4)}), 0.5)
    failed = Grade(
        "both",
        "multi",
        Score(0.0, parts={"judge": Grade("judge", "score_model", Score(0.0, {"other_error": "x"}), 0.5)}),
        0.5,
    )
    cut_off = Grade("both", "multi", Score(0.0, {"truncated_observation_error": "cut"}), 0.5)

    data = measure([rollout(seen), rollout(failed), *[rollout(cut_off)] * 2], None, TIMING)

    assert data["scores"]["graders"][0]["train_reward_mean"] == data["train_mean_reward"] == 0.25
    assert data["errors"]["graders"][0]["train_other_error_mean"] == 0.25
    assert data["usage"]["graders"][0]["train_prompt_tokens_mean"] == 2.0
    assert data["timing"]["graders"][0]["train_execution_latency_mean"] == 0.5  # of those that it did grade


@pytest.mark.parametrize(
    "key",
    [*measure([rollout(check(1.0))], [rollout(check(1.0))], TIMING), "groups_without_spread", "sampling_drift_mean"],
)
def test_a_key_of_the_steps_data_is_on_the_page(key: str) -> None:
    assert f"`{key}`" in PAGE.read_text()


def test_of_a_multi_grader_the_parts_are_told_and_the_tokens_of_models() -> None:
    def multi(exact: float, judged: Grade) -> Grade:
        parts = {"exact": check(exact), "judge": judged}
        return Grade("both", "multi", Score(exact + judged.reward, {}, judged.score.usage, "gpt-5", parts), 1.0)

    train = [rollout(multi(1.0, judge(0.5, 10, 4))), rollout(multi(0.0, judge(0.25, 20, 2)))]
    valid = [rollout(multi(1.0, judge(1.0, 7, 3)))]

    data = measure(train, valid, TIMING)

    assert [(one["name"], one["train_reward_mean"], one["valid_reward_mean"]) for one in data["scores"]["graders"]] == [
        ("exact", 0.5, 1.0),
        ("judge", 0.375, 1.0),
    ]
    usage = data["usage"]["graders"][1]
    assert (usage["model"], usage["train_prompt_tokens_count"], usage["train_prompt_tokens_mean"]) == (
        "gpt-5",
        30,
        15.0,
    )
    assert (usage["valid_completion_tokens_count"], usage["valid_completion_tokens_mean"]) == (3, 3.0)
    assert data["model_graders_token_usage"] == {
        "gpt": {
            "train_cached_tokens": 2,
            "train_prompt_tokens": 30,
            "train_completion_tokens": 6,
            "eval_cached_tokens": 1,
            "eval_prompt_tokens": 7,
            "eval_completion_tokens": 3,
        }
    }


def test_a_step_is_told_in_openais_words_with_the_odd_blank() -> None:
    train = {"train_mean_reward": 0.421}
    valid = {"full_valid_mean_reward": 0.678, "full_valid_mean_parse_error": 0.0}

    assert describe_step(9, 20, train) == "Step 9/20 , train mean reward=0.42"
    assert describe_step(10, 20, train | valid) == (
        "Step 10/20 , train mean reward=0.42, full validation mean reward=0.68, full validation mean parse error=0.00"
    )


def test_a_rollout_is_told_with_its_grade() -> None:
    record = rollout_record(rollout(judge(0.5, 10, 4), own=3, reasoning=1), 4, "train", [{"role": "user"}], -0.7)

    assert record == {
        "step": 4,
        "split": "train",
        "line": 7,
        "sample_index": 2,
        "messages": [{"role": "user"}],
        "output": [{"role": "assistant"}],
        "finish_reason": "stop",
        "reward": 0.5,
        "advantage": -0.7,
        "sub_rewards": {},
        "errors": {},
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "reasoning_tokens": 1,
        "grader_token_usage": {
            "gpt": {"cached_tokens": 1, "prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
        },
        "grading_time": 0.5,
    }
