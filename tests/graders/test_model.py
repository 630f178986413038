from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from caesura.graders.grade import Grade, Observation, TokenUsage, grade, observe_text
from caesura.graders.judges import Judge, Judges, SamplingParams
from caesura.graders.model import (
    AudioBlock,
    ImageBlock,
    LabelModelGrader,
    PromptMessage,
    ScoreModelGrader,
    TextBlock,
    render_messages,
)
from caesura.graders.template import Template, parse_template
from tests.graders.judge_server import Answer, JudgeServer, Time, completion

OBSERVATION = observe_text("Oslo", {"question": "The capital?", "picture": "https://x.test/p.png", "sound": "UklGRg=="})
USAGE = {"expert": TokenUsage(50, 7, 32)}
STEPS = [{"description": "look", "conclusion": "good"}]


def template(text: str) -> Template:
    return parse_template(text, "p")


ASKING = PromptMessage("user", [TextBlock(template("Rate: {{ sample.output_text }}"))])
SCORE = ScoreModelGrader("score", Judge("expert", None, "judge-1"), Judges(None), [ASKING])
LABEL = LabelModelGrader("label", SCORE.judge, SCORE.judges, [ASKING], ["good", "bad", "ugly"], ["good", "ugly"])


def run(
    grader: ScoreModelGrader | LabelModelGrader, answer: Answer, observation: Observation = OBSERVATION
) -> tuple[Grade, Any]:
    """The grade where the judge gives `answer`, and what the judge was asked (None if it was not)."""

    async def run(server: JudgeServer) -> Grade:
        judges = Judges(None, retry=Time().retry())
        try:
            return await grade(replace(grader, judges=judges, judge=replace(grader.judge, url=server.url)), observation)
        finally:
            await judges.close()

    with JudgeServer(answer) as server:
        found = asyncio.run(run(server))
    return found, server.requests[0].body if server.requests else None


def judge(grader: ScoreModelGrader | LabelModelGrader, content: object, **changes: Any) -> Grade:
    return run(grader, Answer(completion(content, **changes)))[0]


@pytest.mark.parametrize(
    ("result", "reward"), [(0.25, 0.25), (0, 0.0), (1, 1.0), (7, 1.0), (-3.5, 0.0), (1e300, 1.0), (-0.0, 0.0)]
)
def test_the_reward_is_the_judges_number_moved_into_the_range(result: float, reward: float) -> None:
    found = judge(SCORE, {"steps": STEPS, "result": result})

    assert found.reward == reward
    assert isinstance(found.reward, float)
    assert found.score.faults == {}
    assert found.score.usage == USAGE
    assert found.score.sampled_model_name == "judge-2025-01-01"


def test_a_range_of_its_own_bounds_the_score() -> None:
    grader = replace(SCORE, range=(-2.0, 10.0))

    assert [judge(grader, {"result": result}).reward for result in (-5, 4.5, 50)] == [-2.0, 4.5, 10.0]


@pytest.mark.parametrize(
    "content",
    [
        "0.5",
        "",
        None,
        "Result: 1",
        '```json\n{"result": 1}\n```',
        '{"result": 1',
        '{"result": NaN}',
        '{"result": Infinity}',
        '{"result": 1e999}',
        '{"result": 1' + "0" * 400 + "}",
        {"result": "1"},
        {"result": True},
        {"result": None},
        {"result": [1]},
        {"score": 1},
        [1],
        "[" * 100_000,
    ],
    ids=lambda content: str(content)[:20],
)
def test_an_answer_without_a_number_is_a_parse_fault_with_a_reward_of_0(content: object) -> None:
    found = judge(replace(SCORE, range=(1.0, 2.0)), content)

    assert found.reward == 0.0
    assert found.score.faults.keys() == {"model_grader_parse_error"}
    assert found.score.faults["model_grader_parse_error"].startswith("The judge 'expert' did not answer in JSON")
    assert len(found.score.faults["model_grader_parse_error"]) < 300
    assert found.score.usage == USAGE
    assert found.score.sampled_model_name == "judge-2025-01-01"


@pytest.mark.parametrize(("label", "reward"), [("good", 1.0), ("ugly", 1.0), ("bad", 0.0)])
def test_a_label_passes_or_does_not(label: str, reward: float) -> None:
    found = judge(LABEL, {"steps": STEPS, "result": label})

    assert (found.reward, found.score.faults, found.score.usage) == (reward, {}, USAGE)


@pytest.mark.parametrize("result", ["Good", "good ", "", "fine", None, 1, True, ["good"], {"good": 1}])
def test_a_label_that_there_is_not_is_a_parse_fault(result: object) -> None:
    found = judge(LABEL, {"steps": STEPS, "result": result})

    assert found.reward == 0.0
    assert found.score.faults.keys() == {"model_grader_parse_error"}
    assert found.score.usage == USAGE


@pytest.mark.parametrize("grader", [SCORE, LABEL])
def test_a_refusal_is_flagged_and_its_tokens_counted(grader: ScoreModelGrader | LabelModelGrader) -> None:
    found = judge(grader, None, refusal="I will not\nrate this.")
    filtered = judge(grader, {"result": 1}, finish_reason="content_filter")

    expected = {"model_grader_refusal_error": "The judge 'expert' refused to answer: I will not rate this."}
    assert found.score.faults == expected
    assert filtered.score.faults.keys() == {"model_grader_refusal_error"}
    assert found.reward == filtered.reward == 0.0
    assert found.score.usage == filtered.score.usage == USAGE


@pytest.mark.parametrize("grader", [SCORE, LABEL])
def test_an_answer_that_was_cut_off_is_flagged_twice_where_nothing_can_be_made_of_it(
    grader: ScoreModelGrader | LabelModelGrader,
) -> None:
    found = judge(grader, '{"steps": [{"descr', finish_reason="length")

    assert found.score.faults.keys() == {"model_grader_parse_error", "truncated_observation_error"}
    assert all("max_completions_tokens" in words for words in found.score.faults.values())
    assert (found.reward, found.score.usage) == (0.0, USAGE)


def test_an_answer_that_ends_just_at_its_limit_counts() -> None:
    assert judge(SCORE, {"result": 0.5}, finish_reason="length").reward == 0.5


def test_a_judge_that_cannot_be_asked_is_told_and_used_no_tokens() -> None:
    error = {"error": {"message": "Unknown part 'input_audio'."}}

    found, _ = run(SCORE, Answer(error, status=400))

    assert found.reward == 0.0
    assert found.score.faults.keys() == {"model_grader_server_error"}
    assert "Unknown part 'input_audio'." in found.score.faults["model_grader_server_error"]
    assert found.score.usage == {}


def test_a_variable_that_there_is_not_is_found_before_the_judge_is_asked() -> None:
    messages = [PromptMessage("user", [TextBlock(template("{{ item.nothing }}"))])]

    found, asked = run(replace(SCORE, messages=messages), Answer(completion({"result": 1})))

    assert found.score.faults.keys() == {"invalid_variable_error"}
    assert asked is None


def test_the_answer_is_forced_into_reasons_and_then_a_number() -> None:
    _, asked = run(SCORE, Answer(completion({"result": 1})))

    step = {
        "type": "object",
        "properties": {"description": {"type": "string"}, "conclusion": {"type": "string"}},
        "required": ["description", "conclusion"],
        "additionalProperties": False,
    }
    assert asked["response_format"]["json_schema"] == {
        "name": "score",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"steps": {"type": "array", "items": step}, "result": {"type": "number"}},
            "required": ["steps", "result"],
            "additionalProperties": False,
        },
    }
    assert list(asked["response_format"]["json_schema"]["schema"]["properties"]) == ["steps", "result"]


def test_the_labels_are_the_only_results_of_the_schema() -> None:
    _, asked = run(replace(LABEL, labels=("good", "bad")), Answer(completion({"result": "good"})))

    schema = asked["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["result"] == {"type": "string", "enum": ["good", "bad"]}


def test_the_judge_is_told_what_to_answer() -> None:
    _, score = run(replace(SCORE, range=(-1.5, 1000000.0)), Answer(completion({"result": 1})))
    _, label = run(replace(LABEL, labels=['"quoted"', "süß"]), Answer(completion({"result": "süß"})))

    assert [message["role"] for message in score["messages"]] == ["system", "user"]
    assert score["messages"][0]["content"].endswith('"result" is a number from -1.5 to 1000000, the score.')
    assert '{"steps": [{"description": "…", "conclusion": "…"}], "result": …}.' in score["messages"][0]["content"]
    assert label["messages"][0]["content"].endswith('"result" is one of these labels: "\\"quoted\\"", "süß".')
    assert score["messages"][1] == {"role": "user", "content": "Rate: Oslo"}


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_that_comes_first_takes_up_the_instruction(role: str) -> None:
    messages = [PromptMessage(role, [TextBlock(template("Be strict."))]), ASKING]

    assert render_messages(messages, "Answer in JSON.", OBSERVATION) == [
        {"role": role, "content": "Be strict.\n\nAnswer in JSON."},
        {"role": "user", "content": "Rate: Oslo"},
    ]


def test_a_system_message_of_parts_and_one_that_comes_later_stay_as_they_are() -> None:
    text = TextBlock(template("a"))

    for messages in ([PromptMessage("system", [text, text])], [ASKING, PromptMessage("system", [text])]):
        first, *others = render_messages(messages, "Answer in JSON.", OBSERVATION)

        assert first == {"role": "system", "content": "Answer in JSON."}
        assert [message["role"] for message in others] == [message.role for message in messages]


def test_every_block_is_rendered_and_passed_on_as_a_part() -> None:
    blocks = [
        TextBlock(template("{{ item.question }} {{ sample.output_text }}?")),
        TextBlock(template("plain")),
        ImageBlock(template("{{ item.picture }}")),
        ImageBlock(template("data:image/png;base64,AAAA"), "low"),
        AudioBlock(template("{{ item.sound }}"), "wav"),
    ]
    messages = [PromptMessage("user", blocks), PromptMessage("assistant", [ImageBlock(template("u"))])]

    assert render_messages(messages, "JSON", OBSERVATION)[1:] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "The capital? Oslo?"},
                {"type": "text", "text": "plain"},
                {"type": "image_url", "image_url": {"url": "https://x.test/p.png"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
            ],
        },
        {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
    ]


def test_the_sampling_of_the_grader_is_the_judges() -> None:
    for grader, result in ((SCORE, 1), (LABEL, "good")):
        sampling = SamplingParams(seed=5, max_completion_tokens=9)
        _, asked = run(replace(grader, sampling=sampling), Answer(completion(json.dumps({"result": result}))))

        assert (asked["seed"], asked["max_completion_tokens"]) == (5, 9)
