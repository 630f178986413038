from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from caesura.errors import InvalidGrader
from caesura.graders.formula import parse_formula
from caesura.graders.grade import Flag, Grade, Grader, GraderFault, Observation, Score, TokenUsage, grade, observe_text
from caesura.graders.multi import MultiGrader, check_names, variables_of_list, variables_of_map

OBSERVATION = observe_text("an answer", {})


@dataclass
class Constant:
    """Always of the same mind."""

    reward: float
    name: str = "constant"
    type: str = "string_check"
    usage: Mapping[str, TokenUsage] = field(default_factory=dict)
    sampled_model_name: str | None = None

    async def score(self, observation: Observation) -> Score:
        return Score(self.reward, usage=self.usage, sampled_model_name=self.sampled_model_name)


@dataclass
class Failing:
    flag: Flag
    details: str
    name: str = "failing"
    type: str = "python"
    usage: Mapping[str, TokenUsage] = field(default_factory=dict)

    async def score(self, observation: Observation) -> Score:
        raise GraderFault(self.flag, details=self.details, usage=self.usage)


def multi(formula: str, **graders: Grader) -> Grade:
    grader = MultiGrader("both", graders, variables_of_map(list(graders)), parse_formula(formula, "p"))
    return asyncio.run(grade(grader, OBSERVATION))


def test_the_reward_is_the_formulas_value() -> None:
    result = multi("0.25 * first + max(first, second)", first=Constant(1.0), second=Constant(3.0))

    assert result.reward == 3.25
    assert (result.name, result.type) == ("both", "multi")
    assert {key: part.reward for key, part in result.score.parts.items()} == {"first": 1.0, "second": 3.0}
    assert result.score.faults == {}


def test_a_part_that_fails_counts_as_0_and_its_flag_is_the_wholes() -> None:
    result = multi(
        "first + second + 1",
        first=Constant(2.0),
        second=Failing("python_grader_runtime_error", "ZeroDivisionError"),
    )

    assert result.reward == 3.0
    assert result.score.faults == {"python_grader_runtime_error": "second: ZeroDivisionError"}
    assert result.score.parts["second"].reward == 0.0


def test_the_flags_of_all_parts_come_together() -> None:
    result = multi(
        "a / b",
        a=Failing("invalid_variable_error", "one"),
        b=Failing("model_grader_parse_error", "two"),
        c=Failing("invalid_variable_error", "three"),
    )

    assert result.reward == 0.0
    assert result.score.faults.keys() == {
        *("invalid_variable_error", "model_grader_parse_error", "formula_parse_error"),
    }
    assert result.score.faults["invalid_variable_error"] == "a: one"


def test_the_tokens_of_the_parts_are_added_by_model() -> None:
    result = multi(
        "a + b + c",
        a=Constant(1.0, usage={"judge": TokenUsage(10, 2, 4)}, sampled_model_name="judge-2026"),
        b=Failing("model_grader_parse_error", "nonsense", usage={"judge": TokenUsage(5, 1, 0)}),
        c=Constant(1.0, usage={"other": TokenUsage(1, 1, 0)}, sampled_model_name="other"),
    )

    assert result.score.usage == {"judge": TokenUsage(15, 3, 4), "other": TokenUsage(1, 1, 0)}
    assert result.score.usage["judge"].total_tokens == 18
    assert result.score.sampled_model_name == "judge-2026"


def test_the_parts_are_asked_at_the_same_time() -> None:
    meeting = asyncio.Barrier(2)

    class Meeting(Constant):
        async def score(self, observation: Observation) -> Score:
            await meeting.wait()  # which nobody passes alone
            return await super().score(observation)

    assert multi("a + b", a=Meeting(1.0), b=Meeting(2.0)).reward == 3.0


def aliases(formula: str, *graders: Grader) -> dict[str, str]:
    return variables_of_list({grader.name: grader for grader in graders}, parse_formula(formula, "p"), "p")


def test_the_graders_of_a_list_are_called_by_name_by_score_and_by_type() -> None:
    similar = Constant(1.0, name="Example text similarity grader", type="text_similarity")
    equal = Constant(1.0, name="equal", type="string_check")

    assert aliases("1", similar, equal) == {
        "example_text_similarity_grader": "Example text similarity grader",
        "example_text_similarity_grader_score": "Example text similarity grader",
        "text_similarity_score": "Example text similarity grader",
        "equal": "equal",
        "equal_score": "equal",
        "string_check_score": "equal",
    }


def test_a_grader_named_after_its_type_is_no_contradiction() -> None:
    assert aliases("string_check_score", Constant(1.0, name="string_check"))["string_check_score"] == "string_check"


def test_a_name_that_means_two_graders_is_refused_where_it_is_used() -> None:
    first, second = Constant(1.0, name="first"), Constant(1.0, name="second")

    assert aliases("first + second", first, second)["first"] == "first"
    with pytest.raises(InvalidGrader, match=r"'string_check_score' means 2 of the graders.*'first', 'second'"):
        aliases("string_check_score", first, second)


def test_a_name_that_is_no_graders_is_refused() -> None:
    with pytest.raises(InvalidGrader, match=r"uses 'other'.*The names are: a, b\.") as fault:
        check_names(parse_formula("a + other", "p"), {"a": "a", "b": "b"}, "grader.calculate_output")

    assert fault.value.param == "grader.calculate_output"
