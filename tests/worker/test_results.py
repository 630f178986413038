from __future__ import annotations

from caesura.worker.results import to_csv


def test_a_job_of_reinforcement_has_its_own_columns_and_empty_cells_where_nothing_was_measured() -> None:
    told = {"step": 1, "total_steps": 2, "train_loss": 0.25, "train_mean_reward": 0.5, "train_reward_mean": 0.5}
    told |= {"mean_unresponsive_rewards": 0.125, "completion_tokens_mean": 12.5, "reasoning_tokens_mean": 0.0}
    valid = {"full_valid_mean_reward": 0.75, "valid_reward_mean": 0.75, "full_valid_mean_parse_error": 0.1}
    valid |= {"valid_reasoning_tokens_mean": 3.0, "scores": {"graders": []}}

    text = to_csv([told, {**told, "step": 2, **valid}], "reinforcement").decode()

    assert text.splitlines() == [
        "step,train_mean_reward,full_valid_mean_reward,full_valid_mean_parse_error,train_loss,"
        "mean_unresponsive_rewards,completion_tokens_mean,reasoning_tokens_mean,valid_reasoning_tokens_mean,"
        "train_reward_mean,valid_reward_mean",
        "1,0.5,,,0.25,0.125,12.5,0.0,,0.5,",
        "2,0.5,0.75,0.1,0.25,0.125,12.5,0.0,3.0,0.5,0.75",
    ]
