"""Graders that could never grade, and requests that name none: 400 with the field, wherever a grader is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.service import Service, error_of
from tests.api.test_graders import CHECK, LABEL, RUN, SCORE, multi, python

WITHOUT_GRADE = "def score(sample, item): return 1"
FAULTY: list[tuple[str, Any, str]] = [
    ("type missing", {key: value for key, value in CHECK.items() if key != "type"}, "type"),
    ("type unknown", {**CHECK, "type": "regex"}, "type"),
    ("operation unknown", {**CHECK, "operation": "matches"}, "operation"),
    ("input missing", {key: value for key, value in CHECK.items() if key != "input"}, "input"),
    ("input no text", {**CHECK, "input": 5}, "input"),
    ("key unknown", {**CHECK, "weight": 5}, "weight"),
    ("name empty", {**CHECK, "name": ""}, "name"),
    ("template not closed", {**CHECK, "input": "{{ sample.output_text"}, "input"),
    ("namespace unknown", {**CHECK, "reference": "{{ row.city }}"}, "reference"),
    ("metric unknown", {**CHECK, "type": "text_similarity", "evaluation_metric": "rouge_9"}, "evaluation_metric"),
    (
        "cosine without a model",
        {"type": "text_similarity", "name": "c", "input": "a", "reference": "b", "evaluation_metric": "cosine"},
        "evaluation_metric",
    ),
    ("syntax error", python("def grade(sample, item)\n    return 1"), "source"),
    ("no grade", python(WITHOUT_GRADE), "source"),
    ("wrong arity", python("def grade(sample): return 1"), "source"),
    ("source too long", python("#" * 262_145), "source"),
    ("judge unknown", {**SCORE, "model": "gpt-99"}, "model"),
    ("no messages", {**SCORE, "input": []}, "input"),
    ("role unknown", {**SCORE, "input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    (
        "block unknown",
        {**SCORE, "input": [{"role": "user", "content": [{"type": "video"}]}]},
        "input[0].content[0].type",
    ),
    (
        "template in a block",
        {**SCORE, "input": [{"role": "user", "content": ["ok", {"type": "input_text", "text": "{{ x }}"}]}]},
        "input[0].content[1].text",
    ),
    (
        "template of an image",
        {**SCORE, "input": [{"role": "user", "content": {"type": "input_image", "image_url": "{{ x }}"}}]},
        "input[0].content.image_url",
    ),
    (
        "template of sound",
        {
            **SCORE,
            "input": [
                {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "{{", "format": "wav"}}]}
            ],
        },
        "input[0].content[0].input_audio.data",
    ),
    ("range upside down", {**SCORE, "range": [1, 0]}, "range"),
    ("range of one", {**SCORE, "range": [1]}, "range"),
    ("effort unknown", {**SCORE, "sampling_params": {"reasoning_effort": "huge"}}, "sampling_params.reasoning_effort"),
    ("labels empty", {**LABEL, "labels": []}, "labels"),
    ("label twice", {**LABEL, "labels": ["good", "bad", "good"]}, "labels[2]"),
    ("labels not a superset", {**LABEL, "passing_labels": ["good", "fine"]}, "passing_labels[1]"),
    ("endpoint of another scheme", {"type": "endpoint", "name": "e", "url": "ftp://example.com/x"}, "url"),
    ("endpoint private", {"type": "endpoint", "name": "e", "url": "http://127.0.0.1:5/x"}, "url"),
    (
        "endpoint with a host header",
        {"type": "endpoint", "url": "https://example.com", "headers": {"Host": "x"}},
        "headers",
    ),
    ("multi of none", multi("a"), "graders"),
    ("multi nested", multi("a", a=multi("b", b=CHECK)), "graders.a.type"),
    ("multi of a faulty one", multi("a", a={**CHECK, "input": "{{"}), "graders.a.input"),
    ("multi of a faulty python", multi("a", a=python(WITHOUT_GRADE)), "graders.a.source"),
    ("formula faulty", multi("a +", a=CHECK), "calculate_output"),
    ("formula of another name", multi("b", a=CHECK), "calculate_output"),
    ("formula of another function", multi("tan(a)", a=CHECK), "calculate_output"),
    (
        "names twice in a list",
        {"type": "multi", "name": "m", "graders": [CHECK, CHECK], "calculate_output": "1"},
        "graders[1].name",
    ),
    (
        "ambiguous name of a type",
        {
            "type": "multi",
            "name": "m",
            "graders": [CHECK, {**CHECK, "name": "other"}],
            "calculate_output": "string_check_score",
        },
        "calculate_output",
    ),
    (
        "faulty part of a list",
        {"type": "multi", "graders": [CHECK, python("")], "calculate_output": "1"},
        "graders[1].source",
    ),
]


@pytest.mark.parametrize(("grader", "param"), [case[1:] for case in FAULTY], ids=[case[0] for case in FAULTY])
def test_a_faulty_grader_is_a_400_that_names_the_field(idle_service: Service, grader: Any, param: str) -> None:
    file_id = idle_service.client.files.list().data[0].id
    job = {
        "model": "caesura-tiny",
        "training_file": file_id,
        "method": {"type": "reinforcement", "reinforcement": {"grader": grader}},
    }
    for path, body, prefix in (
        ("/v1/fine_tuning/alpha/graders/validate", {"grader": grader}, "grader"),
        (RUN, {"grader": grader, "model_sample": "x"}, "grader"),
        ("/v1/fine_tuning/jobs", job, "method.reinforcement.grader"),
    ):
        answer = idle_service.http.post(path, json=body)

        assert answer.status_code == 400, answer.text
        error = error_of(answer)
        assert error["param"] == f"{prefix}.{param}"
        assert error["type"] == "invalid_request_error"
        assert error["code"] is not None


def test_a_reinforcement_job_without_a_grader_names_what_is_missing(idle_service: Service) -> None:
    for method in ({"type": "reinforcement"}, {"type": "reinforcement", "reinforcement": {}}):
        body = {"model": "caesura-tiny", "training_file": "file-x", "method": method}
        error = error_of(idle_service.http.post("/v1/fine_tuning/jobs", json=body))

        assert (error["param"], error["code"]) == ("method.reinforcement.grader", "missing_required_parameter")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"grader": CHECK}, "model_sample"),
        ({"model_sample": "x"}, "grader"),
        ({"grader": CHECK, "model_sample": 5}, "model_sample"),
        ({"grader": CHECK, "model_sample": "x", "item": [1]}, "item"),
        ({"grader": CHECK, "model_sample": "x", "items": {}}, "items"),
    ],
)
def test_a_faulty_run_names_the_parameter(idle_service: Service, body: Any, param: str) -> None:
    answer = idle_service.http.post(RUN, json=body)

    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


def test_half_a_surrogate_pair_in_an_item_is_a_400(idle_service: Service) -> None:
    body = json.dumps({"grader": CHECK, "model_sample": "x", "item": {"city": "?"}}).replace("?", "\\ud800")
    answer = idle_service.http.post(RUN, content=body, headers={"content-type": "application/json"})

    assert error_of(answer)["param"] == "item"
