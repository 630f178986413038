"""Jobs of reinforcement on the wire, and the rollouts that they leave."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from openai.types.fine_tuning.job_create_params import Method

from caesura.settings import Settings
from tests.api.job_shapes import AUTO, post
from tests.api.service import CHECK, Service, error_of

MULTI = {"type": "multi", "name": "half", "graders": {"exact": CHECK}, "calculate_output": "exact / 2"}
MULTI_LIST = {**MULTI, "graders": [CHECK], "calculate_output": "exact_score"}
MULTI_ONE = {**MULTI, "graders": CHECK, "calculate_output": "string_check_score"}
FORMS = ["map", "list", "one"]
JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "caesura-tiny",
    "input": [
        {"role": "developer", "content": "Grade."},
        {"role": "user", "content": ["{{ item.answer }}", {"type": "input_text", "text": "{{ sample.output_text }}"}]},
    ],
    "range": [0, 5],
    "pass_threshold": 5,
}
AUTO_RFT = AUTO | {
    "reasoning_effort": "default",
    "compute_multiplier": "auto",
    "eval_interval": "auto",
    "eval_samples": "auto",
}
PARAM = "method.reinforcement"


def rft(grader: Any = CHECK, **more: Any) -> dict[str, Any]:
    return {"method": {"type": "reinforcement", "reinforcement": {"grader": grader} | more}}


@pytest.fixture
def body(service: Service, good_body: dict[str, Any]) -> dict[str, Any]:
    return {**good_body, "validation_file": good_body["training_file"]}


@pytest.mark.parametrize("grader", [CHECK, MULTI, MULTI_LIST, MULTI_ONE, JUDGE], ids=["check", *FORMS, "judge"])
def test_a_new_job_tells_its_grader_as_it_came_and_every_hyperparameter(
    service: Service, body: dict[str, Any], grader: dict[str, Any]
) -> None:
    answer = post(service, {**body, **rft(grader)})

    assert answer.status_code == 200, answer.text
    assert answer.json()["method"] == {
        "type": "reinforcement",
        "reinforcement": {"grader": grader, "hyperparameters": AUTO_RFT},
    }
    assert answer.json()["hyperparameters"] == AUTO


def test_openais_client_reads_back_what_it_asked_for(service: Service, body: dict[str, Any]) -> None:
    hyperparameters = {
        "n_epochs": 2,
        "batch_size": 4,
        "learning_rate_multiplier": 0.5,
        "reasoning_effort": "low",
        "compute_multiplier": 1.5,
        "eval_interval": 5,
        "eval_samples": 3,
    }
    method = cast(Method, rft(MULTI, hyperparameters=hyperparameters)["method"])
    created = service.client.fine_tuning.jobs.create(**body, method=method)

    jobs = service.client.fine_tuning.jobs
    for job in (created, jobs.retrieve(created.id), jobs.list().data[0]):
        assert job.method is not None
        assert job.method.reinforcement is not None
        assert job.method.reinforcement.hyperparameters is not None
        assert job.method.reinforcement.hyperparameters.to_dict() == hyperparameters
        assert job.method.reinforcement.grader.to_dict() == MULTI


def test_what_openai_does_not_have_is_told_where_it_was_given(service: Service, body: dict[str, Any]) -> None:
    extra = {"kl_coefficient": 0.01, "updates_per_batch": 2, "max_completion_tokens": 64}
    own = {
        "keep_best": True,
        "on_grader_errors": "fail",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "number", "schema": {"type": "object", "properties": {"x": {"type": "number"}}}},
        },
    }

    answer = post(service, {**body, **rft(hyperparameters=extra, **own)})

    assert answer.status_code == 200, answer.text
    told = answer.json()["method"]["reinforcement"]
    assert told == {"grader": CHECK, "hyperparameters": AUTO_RFT | extra, **own}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"hyperparameters": {"compute_multiplier": 0.00001}}, f"{PARAM}.hyperparameters.compute_multiplier"),
        ({"hyperparameters": {"compute_multiplier": 10.1}}, f"{PARAM}.hyperparameters.compute_multiplier"),
        ({"hyperparameters": {"eval_interval": 0}}, f"{PARAM}.hyperparameters.eval_interval"),
        ({"hyperparameters": {"eval_samples": 0.5}}, f"{PARAM}.hyperparameters.eval_samples"),
        ({"hyperparameters": {"reasoning_effort": "max"}}, f"{PARAM}.hyperparameters.reasoning_effort"),
        ({"hyperparameters": {"updates_per_batch": 17}}, f"{PARAM}.hyperparameters.updates_per_batch"),
        ({"hyperparameters": {"kl_coefficient": -1}}, f"{PARAM}.hyperparameters.kl_coefficient"),
        ({"hyperparameters": {"beta": 0.1}}, f"{PARAM}.hyperparameters.beta"),
        ({"keep_best": "yes"}, f"{PARAM}.keep_best"),
        ({"on_grader_errors": "ignore"}, f"{PARAM}.on_grader_errors"),
        ({"max_episode_steps": 0}, f"{PARAM}.max_episode_steps"),
        ({"response_format": {"type": "xml"}}, f"{PARAM}.response_format.type"),
        ({"response_format": {"type": "json_schema"}}, f"{PARAM}.response_format.json_schema"),
        ({"response_format": {"type": "text", "json_schema": {"name": "n"}}}, f"{PARAM}.response_format.json_schema"),
        ({"grader": {"type": "string_check"}}, f"{PARAM}.grader.input"),
        ({"grader": {**CHECK, "input": "{{ row.x }}"}}, f"{PARAM}.grader.input"),
        ({"grader": {**MULTI, "calculate_output": "other"}}, f"{PARAM}.grader.calculate_output"),
        ({"grader": {**JUDGE, "model": "o3-mini"}}, f"{PARAM}.grader.model"),
        ({"tools": [{"name": "f"}]}, f"{PARAM}.tools[0].server_url"),
        ({"tools": [{"name": "f", "server_url": "http://127.0.0.1:1/f"}]}, f"{PARAM}.tools[0].server_url"),
    ],
    ids=str,
)
def test_a_faulty_field_is_a_400_that_names_it(
    service: Service, body: dict[str, Any], more: dict[str, Any], param: str
) -> None:
    answer = post(service, {**body, **rft(**more)})

    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert service.client.fine_tuning.jobs.list().data == []


def test_without_a_validation_file_there_is_no_job(service: Service, good_body: dict[str, Any]) -> None:
    answer = post(service, {**good_body, **rft()})

    assert answer.status_code == 400
    assert error_of(answer)["param"] == "validation_file"
    assert error_of(answer)["code"] == "missing_required_parameter"


@pytest.mark.parametrize("method", [{}, {"reinforcement": None}, {"reinforcement": {}}], ids=str)
def test_without_a_grader_there_is_no_job(service: Service, body: dict[str, Any], method: dict[str, Any]) -> None:
    answer = post(service, {**body, "method": {"type": "reinforcement", **method}})

    assert answer.status_code == 400
    assert error_of(answer)["message"] == "Missing required parameter: 'method.reinforcement.grader'."
    assert error_of(answer)["param"] == "method.reinforcement.grader"
    assert error_of(answer)["code"] == "missing_required_parameter"


class TestWithAllowedTools:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"allowed_tool_hosts": ["tools.test"]})

    def test_tools_of_an_allowed_host_are_told_back(self, service: Service, body: dict[str, Any]) -> None:
        tools = [{"name": "look_up", "server_url": "https://tools.test/look_up", "headers": {"x-team": "blue"}}]

        answer = post(service, {**body, **rft(tools=tools, max_episode_steps=3)})

        assert answer.status_code == 200, answer.text
        assert answer.json()["method"]["reinforcement"]["tools"] == tools
        assert answer.json()["method"]["reinforcement"]["max_episode_steps"] == 3

    def test_two_tools_of_one_name_are_refused(self, service: Service, body: dict[str, Any]) -> None:
        tool = {"name": "look_up", "server_url": "https://tools.test/look_up"}

        answer = post(service, {**body, **rft(tools=[tool, tool])})

        assert answer.status_code == 400
        assert error_of(answer)["param"].startswith(f"{PARAM}.tools[1]")


def upload(service: Service, rows: list[dict[str, Any]]) -> str:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return service.client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id


def prompts(num_rows: int = 10, **more: Any) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": f"{row}?"}], **more} for row in range(num_rows)]


@pytest.mark.parametrize("faulty", ["training_file", "validation_file"])
def test_a_row_without_what_the_grader_names_is_found_before_training(
    service: Service, body: dict[str, Any], faulty: str
) -> None:
    good, bad = upload(service, prompts(answer="1")), upload(service, [*prompts(9, answer="1"), *prompts(1)])
    files = {"training_file": good, "validation_file": good, faulty: bad}
    job = service.client.fine_tuning.jobs.create(model=body["model"], **files, method=cast(Method, rft()["method"]))

    service.server.scheduler.tick()

    failed = service.client.fine_tuning.jobs.retrieve(job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.param == faulty
    assert "Example 10 has no 'answer', which the grader names as '{{ item.answer }}'" in failed.error.message


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}], "answer": "1"},
            "message 2 is the last one and has the role 'assistant'",
        ),
        (
            {
                "input": {"messages": [{"role": "user", "content": "1?"}]},
                "preferred_output": [{"role": "assistant", "content": "1"}],
                "non_preferred_output": [{"role": "assistant", "content": "2"}],
            },
            "is in the fine-tune-preference format",
        ),
    ],
    ids=["supervised", "dpo"],
)
def test_a_file_of_another_method_fails_the_job(
    service: Service, body: dict[str, Any], row: dict[str, Any], words: str
) -> None:
    file = upload(service, [row] * 10)
    job = service.client.fine_tuning.jobs.create(
        model=body["model"], training_file=file, validation_file=file, method=cast(Method, rft()["method"])
    )

    service.server.scheduler.tick()

    error = service.client.fine_tuning.jobs.retrieve(job.id).error
    assert error is not None
    assert words in error.message
