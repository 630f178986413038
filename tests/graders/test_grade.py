from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import pytest

from caesura.graders.grade import Observation, Score, grade, observe_text


@dataclass
class Passing:
    name: str = "passing"
    type: str = "string_check"
    num_asked: int = 0

    async def score(self, observation: Observation) -> Score:
        self.num_asked += 1
        return Score(1.0)


class Broken(Passing):
    async def score(self, observation: Observation) -> Score:
        raise KeyError("/srv/secret")


def sample(text: str = "", tools: list[Any] | None = None, finish_reason: str = "stop", **others: Any) -> Observation:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return Observation(
        {}, {"choices": [choice], "output_text": text, "output_json": None, "output_tools": tools or []} | others
    )


def test_a_grade_has_its_graders_name_and_the_time_it_took() -> None:
    result = asyncio.run(grade(Passing(), sample("answer")))

    assert (result.name, result.type, result.reward) == ("passing", "string_check", 1.0)
    assert 0 <= result.execution_time_s < 60
    assert result.score.faults == {}


def test_an_answer_that_never_came_is_not_graded() -> None:
    grader = Passing()
    result = asyncio.run(grade(grader, sample("")))

    assert result.reward == 0.0
    assert list(result.score.faults) == ["unresponsive_reward_error"]
    assert grader.num_asked == 0


@pytest.mark.parametrize(
    "observation", [sample(" "), sample("", [{"id": "call"}]), sample("", output_audio={"data": "", "transcript": ""})]
)
def test_blanks_calls_and_sounds_are_answers(observation: Observation) -> None:
    assert asyncio.run(grade(Passing(), observation)).reward == 1.0


def test_an_answer_that_was_cut_off_is_not_graded() -> None:
    grader = Passing()
    result = asyncio.run(grade(grader, sample("half an ans", finish_reason="length")))

    assert result.reward == 0.0
    assert list(result.score.faults) == ["truncated_observation_error"]
    assert grader.num_asked == 0


def test_a_fault_that_nobody_foresaw_is_a_flag_and_stands_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        result = asyncio.run(grade(Broken(), sample("answer")))

    assert result.reward == 0.0
    assert list(result.score.faults) == ["other_error"]
    assert "secret" not in str(result.score.faults)
    assert "/srv/secret" in caplog.text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        (' {"a": 1}\n', {"a": 1}),
        ("{}", {}),
        ("[1]", None),
        ("1", None),
        ("", None),
        ("x", None),
    ],
)
def test_an_answers_text_is_parsed_where_it_is_a_json_object(text: str, value: Any) -> None:
    observation = observe_text(text, {"key": 1})

    assert observation.sample["output_json"] == value
    assert observation.sample["output_text"] == text
    assert observation.sample["choices"][0]["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert observation.sample["output_tools"] == []
    assert observation.item == {"key": 1}
