from __future__ import annotations

import json
import re
import time
from typing import Any

import openai
import pytest

from caesura.settings import OPENAI_MODELS
from tests.api.job_shapes import AUTO, JOB, post
from tests.api.service import Service, assert_shape, error_of


def test_a_new_job_is_told_in_openais_form(service: Service, good_body: dict[str, Any]) -> None:
    answer = post(service, good_body)
    job = answer.json()

    assert answer.status_code == 200
    assert_shape(job, JOB)
    assert re.fullmatch(r"ftjob-[A-Za-z0-9]{24}", job["id"])
    assert 0 <= job["seed"] < 2**31
    assert abs(job["created_at"] - time.time()) < 60
    del job["id"], job["seed"], job["created_at"]
    assert job == {
        "object": "fine_tuning.job",
        "finished_at": None,
        "estimated_finish": None,
        "model": "caesura-tiny",
        "fine_tuned_model": None,
        "organization_id": "org-caesura",
        "status": "validating_files",
        "training_file": good_body["training_file"],
        "validation_file": None,
        "result_files": [],
        "trained_tokens": None,
        "error": None,
        "hyperparameters": AUTO,
        "method": {"type": "supervised", "supervised": {"hyperparameters": AUTO}},
        "integrations": [],
        "metadata": None,
        "user_provided_suffix": None,
        "usage_metrics": None,
        "shared_with_openai": False,
    }


def test_what_was_asked_for_is_told_back(service: Service, good_body: dict[str, Any]) -> None:
    hyperparameters = {"n_epochs": 50, "batch_size": 256, "learning_rate_multiplier": 0.1}
    validation_file = service.upload()
    job = service.client.fine_tuning.jobs.create(
        **good_body,
        validation_file=validation_file,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},  # type: ignore[typeddict-item]
        suffix="my model/1: ß",
        seed=2**31 - 1,
        metadata={"team": "blue"},
        integrations=[],
    )

    told = json.loads(service.client.fine_tuning.jobs.retrieve(job.id).to_json())
    assert told["validation_file"] == validation_file
    assert told["hyperparameters"] == hyperparameters
    assert told["method"] == {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    assert (told["user_provided_suffix"], told["seed"], told["metadata"]) == (
        "my model/1: ß",
        2**31 - 1,
        {"team": "blue"},
    )


def test_null_means_absent_everywhere(service: Service, good_body: dict[str, Any]) -> None:
    nothing = dict.fromkeys(
        ("validation_file", "suffix", "seed", "metadata", "integrations", "hyperparameters", "method", "trainingType")
    )
    methods = [
        None,
        {"type": "supervised", "supervised": None, "dpo": None},
        {"type": "supervised", "supervised": {"hyperparameters": None}},
        {"type": "supervised", "supervised": {"hyperparameters": dict.fromkeys(AUTO)}},
    ]
    for method in methods:
        answer = post(service, {**good_body, **nothing, "method": method})

        assert answer.status_code == 200, answer.text
        assert answer.json()["hyperparameters"] == AUTO


def test_hyperparameters_at_their_older_place_are_taken(service: Service, good_body: dict[str, Any]) -> None:
    job = post(service, {**good_body, "hyperparameters": {"n_epochs": 2}}).json()

    assert job["hyperparameters"] == {**AUTO, "n_epochs": 2}
    assert job["method"]["supervised"]["hyperparameters"] == {**AUTO, "n_epochs": 2}


def test_the_method_wins_over_the_older_place(service: Service, good_body: dict[str, Any]) -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}

    job = post(service, {**good_body, "hyperparameters": {"n_epochs": 2}, "method": method}).json()
    assert job["hyperparameters"]["n_epochs"] == 3


def test_what_other_services_clients_send_is_told_again(service: Service, good_body: dict[str, Any]) -> None:
    answer = post(service, {**good_body, "trainingType": "Standard", "eval_id": "x", "user_provided_suffix": "y"})

    assert answer.status_code == 200
    told = answer.json()
    assert (told["trainingType"], told["eval_id"], told["user_provided_suffix"]) == ("Standard", "x", "y")


def test_auto_is_shown_until_the_first_attempt_resolves_it(service: Service) -> None:
    job, lease = service.start_job()
    assert service.http.get(f"/v1/fine_tuning/jobs/{job.id}").json()["hyperparameters"] == AUTO
    resolved = {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.0}
    service.store.attempts.set_plan(lease, {**resolved, "threads": 2})

    told = service.http.get(f"/v1/fine_tuning/jobs/{job.id}").json()
    assert told["hyperparameters"] == resolved
    assert told["method"]["supervised"]["hyperparameters"] == resolved


@pytest.mark.parametrize("model", OPENAI_MODELS)
def test_openais_names_mean_the_embedded_base_and_the_job_says_so(service: Service, model: str) -> None:
    job = service.client.fine_tuning.jobs.create(model=model, training_file=service.upload())

    assert job.model == "caesura-tiny"
    events = service.client.fine_tuning.jobs.list_events(job.id).data
    assert [(event.level, event.message) for event in events if event.level != "info"] == [
        ("warn", f"Model '{model}' is an alias in this server's settings and means 'caesura-tiny'")
    ]


def test_a_base_by_its_own_name_needs_no_warning(service: Service) -> None:
    events = service.client.fine_tuning.jobs.list_events(service.create_job()).data

    assert {event.level for event in events} == {"info"}


HYPER = "method.supervised.hyperparameters"


def method(**hyperparameters: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}}


@pytest.mark.parametrize(
    ("extra", "param", "code", "message"),
    [
        ({"model": None}, "model", "missing_required_parameter", "Missing required parameter: 'model'."),
        ({"training_file": None}, "training_file", "missing_required_parameter", "Missing required parameter: 'tra"),
        ({"model": 5}, "model", "invalid_type", "Invalid type for 'model': expected a string, but got an integer"),
        (
            {"model": "gpt-2"},
            "model",
            "model_not_available",
            "Model gpt-2 is not available for fine-tuning or does not exist. This server's bases are: 'caesura-tiny'. "
            "A tuned model or a checkpoint that GET /v1/models lists may be named as well.",
        ),
        ({"training_file": "file-x"}, "training_file", None, "invalid training_file: file-x"),
        ({"validation_file": "file-x"}, "validation_file", None, "invalid validation_file: file-x"),
        ({"epochs": 3}, "epochs", "unknown_parameter", "Unknown parameter: 'epochs'."),
        (method(epochs=3), f"{HYPER}.epochs", "unknown_parameter", f"Unknown parameter: '{HYPER}.epochs'."),
        (
            method(n_epochs=0),
            f"{HYPER}.n_epochs",
            "integer_below_min_value",
            f"Invalid '{HYPER}.n_epochs': integer below minimum value. Expected a value >= 1, but got 0 instead.",
        ),
        (
            method(n_epochs=51),
            f"{HYPER}.n_epochs",
            "integer_above_max_value",
            f"Invalid '{HYPER}.n_epochs': integer above maximum value. Expected a value <= 50, but got 51 instead.",
        ),
        (method(batch_size=257), f"{HYPER}.batch_size", "integer_above_max_value", "Invalid '"),
        (method(batch_size=-1), f"{HYPER}.batch_size", "integer_below_min_value", "Invalid '"),
        (
            method(n_epochs="3"),
            f"{HYPER}.n_epochs",
            "invalid_type",
            f"Invalid type for '{HYPER}.n_epochs': expected an integer, but got a string instead.",
        ),
        (
            method(n_epochs=2.5),
            f"{HYPER}.n_epochs",
            "invalid_type",
            f"Invalid type for '{HYPER}.n_epochs': expected an",
        ),
        (
            method(n_epochs=True),
            f"{HYPER}.n_epochs",
            "invalid_type",
            f"Invalid type for '{HYPER}.n_epochs': expected an integer, but got a boolean instead.",
        ),
        (
            method(learning_rate_multiplier=0),
            f"{HYPER}.learning_rate_multiplier",
            "decimal_below_min_value",
            f"Invalid '{HYPER}.learning_rate_multiplier': decimal below minimum value. "
            "Expected a value > 0, but got 0 instead.",
        ),
        (method(learning_rate_multiplier=[]), f"{HYPER}.learning_rate_multiplier", "invalid_type", "Invalid type"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "integer_below_min_value", "Invalid 'hyp"),
        (
            {"method": {"type": "ppo", "ppo": {}}},
            "method.type",
            "invalid_value",
            "Invalid value: 'ppo'. Supported values are: 'supervised', 'dpo', and 'reinforcement'.",
        ),
        ({"method": {}}, "method.type", "missing_required_parameter", "Missing required parameter: 'method.type'."),
        ({"method": "supervised"}, "method", "invalid_type", "Invalid type for 'method': expected an object, but got"),
        (
            {"method": {"type": 1}},
            "method.type",
            "invalid_type",
            "Invalid type for 'method.type': expected one of 'supervised', 'dpo', and 'reinforcement', "
            "but got an integer instead.",
        ),
        (
            {"method": {"type": "supervised", "dpo": {}}},
            "method.dpo",
            "invalid_value",
            "Invalid value for 'method.dpo': 'method.type' is 'supervised'; "
            "leave this out, or set 'method.type' to 'dpo'.",
        ),
        (
            {"method": {"type": "supervised", "reinforcement": {}}},
            "method.reinforcement",
            "invalid_value",
            "Invalid value for 'method.reinforcement': 'method.type' is 'supervised'; ",
        ),
        (
            {"method": {"type": "reinforcement", "supervised": {"hyperparameters": 5}}},
            "method.supervised",
            "invalid_value",
            "Invalid value for 'method.supervised': 'method.type' is 'reinforcement'; ",
        ),
        (
            {"suffix": "x" * 65},
            "suffix",
            "string_above_max_length",
            "Invalid 'suffix': string too long. Expected a string with maximum length 64, "
            "but got a string with length 65 instead.",
        ),
        ({"suffix": ""}, "suffix", "string_below_min_length", "Invalid 'suffix': string too short. Expected a string"),
        ({"suffix": "a\nb"}, "suffix", "invalid_value", "Invalid value for 'suffix': "),
        ({"seed": -1}, "seed", "integer_below_min_value", "Invalid 'seed': integer below minimum value."),
        ({"seed": 2**31}, "seed", "integer_above_max_value", "Invalid 'seed': integer above maximum value."),
        ({"seed": "7"}, "seed", "invalid_type", "Invalid type for 'seed': expected an integer, but got a string ins"),
        ({"seed": 7.0}, "seed", "invalid_type", "Invalid type for 'seed': expected an integer, but got a decimal ins"),
        (
            {"metadata": []},
            "metadata",
            "invalid_type",
            "Invalid type for 'metadata': expected an object, but got an ar",
        ),
        (
            {"metadata": {str(number): "v" for number in range(17)}},
            "metadata",
            "object_above_max_properties",
            "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, "
            "but got an object with 17 properties instead.",
        ),
        (
            {"metadata": {"k": 1}},
            "metadata.k",
            "invalid_type",
            "Invalid type for 'metadata.k': expected a string, but got an integer instead.",
        ),
        ({"metadata": {"k": None}}, "metadata.k", "invalid_type", "Invalid type for 'metadata.k': expected a string"),
        ({"metadata": {"[key]": 1}}, "metadata.[key]", "invalid_type", "Invalid type for 'metadata.[key]': expected a"),
        ({"metadata": {"number": 1}}, "metadata.number", "invalid_type", "Invalid type for 'metadata.number': expect"),
        (
            {"metadata": {"k" * 65: "v"}},
            f"metadata.{'k' * 65}",
            "property_name_above_max_length",
            f"Invalid 'metadata.{'k' * 65}': property name too long. Expected a property name with maximum length 64, "
            "but got a property name with length 65 instead.",
        ),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "string_above_max_length", "Invalid 'metadata.k': string too"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_faulty_body_is_a_400_that_names_the_parameter_and_makes_no_job(
    idle_service: Service, idle_body: dict[str, Any], extra: dict[str, Any], param: str, code: str | None, message: str
) -> None:
    answer = post(idle_service, {**idle_body, **extra})

    assert answer.status_code == 400
    error = error_of(answer)
    assert error["message"].startswith(message), error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert idle_service.http.get("/v1/fine_tuning/jobs").json()["data"] == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_json_does_not_know_is_no_number(idle_service: Service, idle_body: dict[str, Any], number: str) -> None:
    body = json.dumps({**idle_body, "hyperparameters": {"learning_rate_multiplier": 12345}}).replace("12345", number)
    answer = idle_service.http.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert error_of(answer)["param"] == "hyperparameters.learning_rate_multiplier"


def test_metadata_of_the_largest_size_is_kept(service: Service) -> None:
    metadata = {f"{number:02}" + "k" * 62: "v" * 512 for number in range(16)}

    assert service.client.fine_tuning.jobs.retrieve(service.create_job(metadata=metadata)).metadata == metadata


def test_a_file_of_another_purpose_is_refused_by_name(service: Service) -> None:
    file_id = service.upload(purpose="batch")
    with pytest.raises(openai.BadRequestError) as caught:
        service.create_job(training_file=file_id)

    assert caught.value.body == {
        "message": f"File '{file_id}' has the purpose 'batch'; "
        "a job's training_file must have the purpose 'fine-tune'.",
        "type": "invalid_request_error",
        "param": "training_file",
        "code": "invalid_file_purpose",
    }


def test_azures_weight_of_prompts_is_taken_in_both_places_and_told_where_it_was_given(
    service: Service, good_body: dict[str, Any]
) -> None:
    asked = {"n_epochs": 2, "prompt_loss_weight": 0.1}
    older = service.http.post("/v1/fine_tuning/jobs", json={**good_body, "hyperparameters": asked}).json()
    method = {"type": "supervised", "supervised": {"hyperparameters": asked}}
    newer = service.http.post("/v1/fine_tuning/jobs", json={**good_body, "method": method}).json()
    plain = service.http.post("/v1/fine_tuning/jobs", json=good_body).json()

    told = {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": "auto", "prompt_loss_weight": 0.1}
    assert older["method"]["supervised"]["hyperparameters"] == newer["method"]["supervised"]["hyperparameters"] == told
    assert "prompt_loss_weight" not in plain["method"]["supervised"]["hyperparameters"]
    refused = service.http.post(
        "/v1/fine_tuning/jobs", json={**good_body, "hyperparameters": {"prompt_loss_weight": 2}}
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "hyperparameters.prompt_loss_weight"
