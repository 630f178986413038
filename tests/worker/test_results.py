from __future__ import annotations

import pytest

from caesura.training.method import RowLoss
from caesura.worker.results import describe_abnormal, rows_to_csv, score, to_csv


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


def test_a_score_is_the_distance_from_the_median_in_median_distances() -> None:
    losses = [1.0, 2.0, 3.0, 4.0, 9.0]  # the median is 3, the distances are 2, 1, 0, 1, 6, and their median is 1
    scored = score([RowLoss(line, 10, loss) for line, loss in enumerate(losses, 1)])

    assert [row.score for row in scored] == pytest.approx([-1.349, -0.6745, 0.0, 0.6745, 4.047])
    assert rows_to_csv(scored[2:3]).decode() == "line,tokens,loss,z_score\n3,10,3.0,0.0\n"
    assert describe_abnormal(scored) == "5 (loss 9.00)"


def test_only_rows_that_are_far_harder_than_the_others_are_named_the_hardest_first() -> None:
    losses = [1.0, 1.1, 0.9] * 20 + [-9.0, 1.3] + [2.0 + number for number in range(7)]
    told = describe_abnormal(score([RowLoss(line, 1, loss) for line, loss in enumerate(losses, 1)]))

    assert told == "69 (loss 8.00), 68 (loss 7.00), 67 (loss 6.00), 66 (loss 5.00), 65 (loss 4.00)"


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, 1.0, 1.0, 5.0]], ids=str)
def test_without_a_spread_there_is_no_score(losses: list[float]) -> None:
    scored = score([RowLoss(line, 1, loss) for line, loss in enumerate(losses, 1)])

    assert describe_abnormal(scored) is None
    assert rows_to_csv(scored).decode().splitlines()[1:] == [f"{line},1,{loss}," for line, loss in enumerate(losses, 1)]
