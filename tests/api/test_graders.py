"""Graders, as the official client sees them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from caesura.errors import InvalidRequest
from caesura.graders.sandbox import Level
from caesura.inference.engine import Finished, Text
from caesura.settings import JudgeSettings, Settings
from tests.api.service import HttpServer, Service, assert_shape, build_service, error_of
from tests.graders.judge_server import Answer, JudgeServer, completion

CHECK = {
    "type": "string_check",
    "name": "city",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.city }}",
    "operation": "eq",
}
SCORE = {
    "type": "score_model",
    "name": "score",
    "model": "caesura-tiny",
    "input": [{"role": "user", "content": "Score {{ sample.output_text }}"}],
}
LABEL = {
    "type": "label_model",
    "name": "label",
    "model": "caesura-tiny",
    "input": [{"role": "user", "content": "Judge {{ sample.output_text }}"}],
    "labels": ["good", "bad"],
    "passing_labels": ["good"],
}
RUN = "/v1/fine_tuning/alpha/graders/run"
FLAGS = {
    "formula_parse_error": bool,
    "sample_parse_error": bool,
    "truncated_observation_error": bool,
    "unresponsive_reward_error": bool,
    "invalid_variable_error": bool,
    "other_error": bool,
    "python_grader_server_error": bool,
    "python_grader_server_error_type": str | None,
    "python_grader_runtime_error": bool,
    "python_grader_runtime_error_details": str | None,
    "model_grader_server_error": bool,
    "model_grader_refusal_error": bool,
    "model_grader_parse_error": bool,
    "model_grader_server_error_details": str | None,
}
TOKENS = {"prompt_tokens": int, "total_tokens": int, "completion_tokens": int, "cached_tokens": int}


def python(source: str) -> dict[str, Any]:
    return {"type": "python", "name": "python", "source": source}


def multi(formula: str, **graders: Any) -> dict[str, Any]:
    return {"type": "multi", "name": "both", "graders": graders, "calculate_output": formula}


def run(client: OpenAI, grader: Any, text: str = "Oslo", item: Any = None) -> Any:
    return client.fine_tuning.alpha.graders.run(
        grader=grader, model_sample=text, item={"city": "Oslo"} if item is None else item
    )


def raised(answer: Any) -> set[str]:
    """The flags that are up."""
    return {flag for flag, value in answer.metadata.errors.to_dict().items() if value is True}


# What comes back.


def test_a_run_has_the_shape_of_openais(idle_service: Service) -> None:
    body = {"grader": CHECK, "model_sample": "Oslo", "item": {"city": "Oslo"}}
    answer = idle_service.http.post(RUN, json=body).json()

    metadata = {"name": str, "type": str, "errors": FLAGS, "execution_time": float, "scores": dict}
    metadata |= {"token_usage": None | dict, "sampled_model_name": None | str, "error_details": None | str}
    assert_shape(
        answer,
        {"reward": float, "metadata": metadata, "sub_rewards": dict, "model_grader_token_usage_per_model": dict},
    )
    assert answer["reward"] == 1.0
    assert (answer["metadata"]["name"], answer["metadata"]["type"]) == ("city", "string_check")
    assert answer["metadata"]["scores"] == answer["sub_rewards"] == answer["model_grader_token_usage_per_model"] == {}
    assert answer["metadata"]["token_usage"] is None


def test_the_official_client_reads_a_run(idle_service: Service) -> None:
    answer = run(idle_service.client, CHECK, "Bergen")

    assert answer.reward == 0.0
    assert answer.metadata.name == "city"
    assert raised(answer) == set()


def test_a_multi_grader_tells_its_parts(idle_service: Service) -> None:
    answer = run(idle_service.client, multi("0.5 * a + b", a=CHECK, b={**CHECK, "operation": "ne"}))

    assert answer.reward == 0.5
    assert answer.sub_rewards == answer.metadata.scores == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize(
    ("graders", "formula"),
    [
        ([CHECK, {**CHECK, "type": "text_similarity", "name": "Alike", "evaluation_metric": "fuzzy_match"}], None),
        (CHECK, "string_check_score"),
        (CHECK, "city"),
    ],
)
def test_the_other_forms_of_a_multi_grader(idle_service: Service, graders: Any, formula: str | None) -> None:
    if isinstance(graders, list):
        del graders[1]["operation"]
        formula = "0.5 * text_similarity_score +  0.5 * string_check_score)"  # as OpenAI's own example has it
    grader = {"type": "multi", "name": "m", "graders": graders, "calculate_output": formula}

    assert idle_service.client.fine_tuning.alpha.graders.validate(grader=grader).grader is not None
    assert run(idle_service.client, grader).reward == 1.0


def test_a_name_left_out_is_the_key_or_the_type(idle_service: Service) -> None:
    nameless = {key: value for key, value in CHECK.items() if key != "name"}

    assert run(idle_service.client, nameless).metadata.name == "string_check"
    whole = {key: value for key, value in multi("a", a=nameless).items() if key != "name"}
    assert run(idle_service.client, whole).metadata.name == "multi"


def test_the_answer_of_an_older_client_is_an_item(idle_service: Service) -> None:
    grader = {**CHECK, "reference": "{{ item.reference_answer.city }}"}
    body = {"grader": grader, "model_sample": "Oslo", "reference_answer": {"city": "Oslo"}}

    assert idle_service.http.post(RUN, json=body).json()["reward"] == 1.0
    body["item"] = {"reference_answer": {"city": "Bergen"}}
    assert idle_service.http.post(RUN, json=body).json()["reward"] == 0.0


@pytest.mark.parametrize(
    "grader",
    [
        CHECK,
        {**CHECK, "operation": "neq", "pass_threshold": None},
        {**SCORE, "range": [0, 5], "sampling_params": {"seed": None, "max_completions_tokens": 5, "top_p": 1}},
        LABEL,
        python("def grade(sample, item):\n    return 1.0"),
        multi("a", a=CHECK),
        {"type": "multi", "name": "m", "graders": [CHECK], "calculate_output": "city"},
        {"type": "endpoint", "name": "e", "url": "https://grader.example.com/x", "headers": {"X-Key": "k"}},
    ],
)
def test_validate_answers_with_the_grader_as_it_was_sent(idle_service: Service, grader: Any) -> None:
    answer = idle_service.http.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": grader})

    assert answer.status_code == 200, answer.text
    assert answer.json() == {"grader": grader}


# Every flag.


def test_flag_invalid_variable_error(idle_service: Service) -> None:
    answer = run(idle_service.client, {**CHECK, "reference": "{{ item.country }}"})

    assert answer.reward == 0.0
    assert raised(answer) == {"invalid_variable_error"}
    assert "item.country" in answer.metadata.error_details


def test_flag_sample_parse_error(idle_service: Service) -> None:
    answer = run(idle_service.client, {**CHECK, "input": "{{ sample.output_json.city }}"}, "no JSON")

    assert raised(answer) == {"sample_parse_error"}


def test_flag_formula_parse_error(idle_service: Service) -> None:
    answer = run(idle_service.client, multi("1 / (a - 1)", a=CHECK))

    assert answer.reward == 0.0
    assert raised(answer) == {"formula_parse_error"}
    assert answer.sub_rewards == {"a": 1.0}


def test_flag_unresponsive_reward_error(idle_service: Service) -> None:
    answer = run(idle_service.client, {**CHECK, "operation": "ne"}, "")

    assert answer.reward == 0.0
    assert raised(answer) == {"unresponsive_reward_error"}


def test_flag_python_grader_runtime_error(idle_service: Service) -> None:
    answer = run(idle_service.client, python("def grade(sample, item):\n    return item['missing']"))

    assert answer.reward == 0.0
    assert raised(answer) == {"python_grader_runtime_error"}
    details = answer.metadata.errors.python_grader_runtime_error_details
    assert "KeyError: 'missing'" in details
    assert "line 2" in details
    assert "caesura" not in details


def test_flag_python_grader_server_error(idle_service: Service) -> None:
    answer = run(idle_service.client, python("import os\ndef grade(sample, item):\n    os.abort()"))

    assert answer.reward == 0.0
    assert raised(answer) == {"python_grader_server_error"}
    assert answer.metadata.errors.python_grader_server_error_type


def test_flag_other_error(idle_service: Service) -> None:
    grader = {**CHECK, "type": "text_similarity", "evaluation_metric": "rouge_l"}
    del grader["operation"]
    answer = run(idle_service.client, grader, "word " * 200_000, {"city": "word " * 200_000})

    assert answer.reward == 0.0
    assert raised(answer) == {"other_error"}


def test_flag_model_grader_server_error(service: Service) -> None:
    service.engine.pieces = [InvalidRequest("The messages leave no room.", param="messages")]
    answer = run(service.client, SCORE)

    assert answer.reward == 0.0
    assert raised(answer) == {"model_grader_server_error"}
    assert "The messages leave no room" in answer.metadata.errors.model_grader_server_error_details
    assert answer.metadata.token_usage is None


def test_a_judge_that_cannot_take_a_block_is_a_clear_flag(idle_service: Service) -> None:
    image = {"type": "input_image", "image_url": "https://example.com/{{ item.city }}.png"}
    answer = run(idle_service.client, {**SCORE, "input": [{"role": "user", "content": ["Look.", image]}]})

    assert answer.reward == 0.0
    assert raised(answer) == {"model_grader_server_error"}
    assert "image_url" in answer.metadata.error_details


def test_flag_model_grader_parse_error(service: Service) -> None:
    service.engine.pieces = [Text('{"steps": [], "result": "nine"}'), Finished("stop", 5, 2)]
    answer = run(service.client, {**SCORE, "range": [3, 9]})

    assert answer.reward == 0.0  # not 3
    assert raised(answer) == {"model_grader_parse_error"}
    assert answer.metadata.token_usage["total_tokens"] == 7


def test_flag_truncated_observation_error(service: Service) -> None:
    service.engine.pieces = [Text('{"steps": [{"desc'), Finished("length", 5, 2)]
    answer = run(service.client, SCORE)

    assert answer.reward == 0.0
    assert raised(answer) == {"model_grader_parse_error", "truncated_observation_error"}


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    with JudgeServer(Answer(completion({"steps": [], "result": 0.25}))) as server:
        yield server


@pytest.fixture
def judged_service(
    tmp_path: Path, judge: JudgeServer, http_server: HttpServer, client: OpenAI, http: httpx.Client
) -> Iterator[Service]:
    """With a judge elsewhere."""
    settings = Settings(data_dir=tmp_path / "judged", judges={"stern": JudgeSettings(url=judge.url, model="stern-2")})
    service = build_service(settings, http_server, client, http)
    yield service
    service.close()


def test_flag_model_grader_refusal_error(judged_service: Service, judge: JudgeServer) -> None:
    judge.answers = [Answer(completion(refusal="I would rather not."))]
    answer = run(judged_service.client, {**SCORE, "model": "stern"})

    assert answer.reward == 0.0
    assert raised(answer) == {"model_grader_refusal_error"}


# Judges.


def test_a_judge_of_this_server_scores(service: Service) -> None:
    service.engine.pieces = [Text('{"steps": [], "result": 0.75}'), Finished("stop", 11, 4)]
    answer = run(service.client, {**SCORE, "sampling_params": {"temperature": 0.5, "max_completions_tokens": 64}})

    assert raised(answer) == set()
    assert answer.reward == 0.75
    tokens = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15, "cached_tokens": 0}
    assert answer.model_grader_token_usage_per_model == {"caesura-tiny": tokens}
    assert answer.metadata.token_usage == tokens
    assert answer.metadata.sampled_model_name == "caesura-tiny"
    (asked,) = service.engine.requests
    assert (asked.temperature, asked.max_tokens) == (0.5, 64)
    assert any("Score Oslo" in str(message["content"]) for message in asked.messages)


def test_an_alias_of_this_server_is_a_judge(service: Service) -> None:
    service.engine.pieces = [Text('{"steps": [], "result": "good"}'), Finished("stop", 11, 4)]
    answer = run(service.client, {**LABEL, "model": "gpt-4o-mini"})

    assert answer.reward == 1.0
    assert answer.metadata.sampled_model_name == "caesura-tiny"


def test_a_judge_elsewhere_scores(judged_service: Service, judge: JudgeServer) -> None:
    answer = run(judged_service.client, {**SCORE, "model": "stern"})

    assert answer.reward == 0.25
    assert judge.requests[0].body["model"] == "stern-2"
    assert judge.requests[0].path == "/chat/completions"
    assert not judged_service.engine.requests


# The sandbox.


def test_where_there_is_no_sandbox_python_graders_are_refused(
    tmp_path: Path, http_server: HttpServer, client: OpenAI, http: httpx.Client
) -> None:
    settings = Settings(data_dir=tmp_path / "bare")
    service = build_service(settings, http_server, client, http, Level.NONE)
    try:
        for grader, param in (
            (python("def grade(sample, item): return 1"), "grader.type"),
            (multi("a", a=python("def grade(sample, item): return 1")), "grader.graders.a.type"),
        ):
            error = error_of(service.http.post(RUN, json={"grader": grader, "model_sample": "x"}))

            assert error["param"] == param
            assert "sandbox" in error["message"]
        assert http.get("/healthz").json()["sandbox"] == "none"
    finally:
        service.close()


def test_python_graders_run_as_users_write_them(idle_service: Service) -> None:
    source = """
import json
import re

def grade(sample, item):
    found = re.findall(r"\\d+", sample["output_text"])
    return len(found) / item["most"] if sample["output_json"] is None else 0
"""
    answer = run(idle_service.client, python(source), "1 and 22", {"most": 4})

    assert raised(answer) == set()
    assert answer.reward == 0.5
