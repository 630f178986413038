from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import DpoHyperparametersParam
from openai.types.fine_tuning.job_create_params import Method

from tests.api.job_shapes import AUTO, DPO_JOB, post
from tests.api.service import Service, assert_shape, error_of

AUTO_DPO = AUTO | {"beta": "auto"}
#: What OpenAI's service does not have.
EXTRA = {"l2_multiplier": 0.1, "loss_type": "sigmoid", "label_smoothing": 0.2}
HYPER = "method.dpo.hyperparameters"


def dpo(**hyperparameters: Any) -> dict[str, Any]:
    return {"method": {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}}


def test_a_new_job_is_told_in_openais_form(service: Service, good_body: dict[str, Any]) -> None:
    answer = post(service, {**good_body, "method": {"type": "dpo"}})
    job = answer.json()

    assert answer.status_code == 200
    assert_shape(job, DPO_JOB)
    assert job["method"] == {"type": "dpo", "dpo": {"hyperparameters": AUTO_DPO}}
    assert job["hyperparameters"] == AUTO


def test_openais_client_reads_back_what_it_asked_for(service: Service, good_body: dict[str, Any]) -> None:
    hyperparameters = DpoHyperparametersParam(n_epochs=2, batch_size=8, learning_rate_multiplier=0.5, beta=0.25)
    method = Method(type="dpo", dpo={"hyperparameters": hyperparameters})
    created = service.client.fine_tuning.jobs.create(**good_body, method=method)

    (listed,) = service.client.fine_tuning.jobs.list().data
    for job in (created, listed, service.client.fine_tuning.jobs.retrieve(created.id)):
        assert job.id == created.id
        assert job.method is not None
        assert (job.method.type, job.method.supervised, job.method.reinforcement) == ("dpo", None, None)
        assert job.method.dpo is not None
        assert job.method.dpo.hyperparameters is not None
        assert job.method.dpo.hyperparameters.to_dict() == hyperparameters
        shared = {name: value for name, value in hyperparameters.items() if name != "beta"}
        assert job.hyperparameters.to_dict() == shared


@pytest.mark.parametrize(
    "method",
    [
        {"type": "dpo", "dpo": None, "supervised": None, "reinforcement": None},
        {"type": "dpo", "dpo": {}},
        {"type": "dpo", "dpo": {"hyperparameters": None}},
        {"type": "dpo", "dpo": {"hyperparameters": dict.fromkeys(AUTO_DPO | EXTRA)}},
        {"type": "dpo", "dpo": {"hyperparameters": AUTO_DPO}},
    ],
)
def test_what_is_null_or_absent_is_auto(service: Service, good_body: dict[str, Any], method: dict[str, Any]) -> None:
    answer = post(service, {**good_body, "method": method})

    assert answer.status_code == 200, answer.text
    assert answer.json()["method"] == {"type": "dpo", "dpo": {"hyperparameters": AUTO_DPO}}


@pytest.mark.parametrize(
    "extra",
    [
        EXTRA,
        {"l2_multiplier": "auto"},
        {"l2_multiplier": 0},
        {"l2_multiplier": 1e9},
        {"loss_type": "ipo"},
        {"loss_type": "ipo", "label_smoothing": 0},
        {"label_smoothing": 0.49},
        {"beta": 2},
        {"beta": 1e-9},
    ],
    ids=str,
)
def test_what_openai_does_not_have_is_told_where_it_was_given(
    service: Service, good_body: dict[str, Any], extra: dict[str, Any]
) -> None:
    answer = post(service, {**good_body, **dpo(**extra)})

    assert answer.status_code == 200, answer.text
    assert answer.json()["method"]["dpo"]["hyperparameters"] == AUTO_DPO | extra
    assert answer.json()["hyperparameters"] == AUTO


def test_the_method_wins_over_the_older_place_of_hyperparameters(service: Service, good_body: dict[str, Any]) -> None:
    job = post(service, {**good_body, "hyperparameters": {"n_epochs": 2, "batch_size": 4}, **dpo(n_epochs=3)}).json()

    assert job["method"]["dpo"]["hyperparameters"] == AUTO_DPO | {"n_epochs": 3}
    assert job["hyperparameters"] == AUTO | {"n_epochs": 3}


def test_auto_is_shown_until_the_first_attempt_resolves_it(service: Service, good_body: dict[str, Any]) -> None:
    job_id = service.create_job(**good_body, **dpo(batch_size=4, l2_multiplier="auto"))
    service.store.jobs.mark_valid(job_id)
    claimed = service.store.attempts.claim(job_id, "worker-here", 60)
    assert claimed is not None
    asked = AUTO_DPO | {"batch_size": 4, "l2_multiplier": "auto"}
    assert service.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["method"]["dpo"]["hyperparameters"] == asked
    resolved = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 0.71, "beta": 0.1, "l2_multiplier": 0.0}
    own = {"loss_type": "sigmoid", "label_smoothing": 0.0, "threads": 2}
    service.store.attempts.set_plan(claimed[1], resolved | own)

    job = service.client.fine_tuning.jobs.retrieve(job_id)
    told = json.loads(job.to_json())
    assert told["method"] == {"type": "dpo", "dpo": {"hyperparameters": resolved}}
    assert told["hyperparameters"] == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 0.71}


@pytest.mark.parametrize(
    ("hyperparameters", "name", "code", "message"),
    [
        ({"n_epochs": 51}, "n_epochs", "integer_above_max_value", "Expected a value <= 50, but got 51 instead."),
        ({"batch_size": 0}, "batch_size", "integer_below_min_value", "Expected a value >= 1, but got 0 instead."),
        ({"learning_rate_multiplier": 0}, "learning_rate_multiplier", "decimal_below_min_value", "Expected a value >"),
        ({"beta": 0}, "beta", "decimal_below_min_value", "Expected a value > 0, but got 0 instead."),
        ({"beta": -0.1}, "beta", "decimal_below_min_value", "Expected a value > 0, but got -0.1 instead."),
        ({"beta": 2.01}, "beta", "decimal_above_max_value", "Expected a value <= 2, but got 2.01 instead."),
        ({"beta": "0.1"}, "beta", "invalid_type", "expected a number, but got a string instead."),
        ({"beta": True}, "beta", "invalid_type", "expected a number, but got a boolean instead."),
        ({"l2_multiplier": -1}, "l2_multiplier", "decimal_below_min_value", "Expected a value >= 0, but got -1"),
        ({"l2_multiplier": "none"}, "l2_multiplier", "invalid_type", "expected a number, but got a string instead."),
        ({"loss_type": "hinge"}, "loss_type", "invalid_value", "Supported values are: 'sigmoid' and 'ipo'."),
        ({"label_smoothing": -0.1}, "label_smoothing", "decimal_below_min_value", "Expected a value >= 0, but got"),
        ({"label_smoothing": 0.5}, "label_smoothing", "decimal_above_max_value", "Expected a value < 0.5, but got 0.5"),
        ({"label_smoothing": "auto"}, "label_smoothing", "invalid_type", "expected a number, but got a string"),
        (
            {"label_smoothing": 0.1, "loss_type": "ipo"},
            "label_smoothing",
            "invalid_value",
            f"Invalid value for '{HYPER}.label_smoothing': the loss_type 'ipo' has none; "
            "leave it out, or set loss_type to 'sigmoid'.",
        ),
        ({"gamma": 1}, "gamma", "unknown_parameter", f"Unknown parameter: '{HYPER}.gamma'."),
    ],
    ids=str,
)
def test_a_faulty_hyperparameter_is_a_400_that_names_it_and_makes_no_job(
    idle_service: Service,
    idle_body: dict[str, Any],
    hyperparameters: dict[str, Any],
    name: str,
    code: str,
    message: str,
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        idle_service.client.fine_tuning.jobs.create(**idle_body, **dpo(**hyperparameters))

    assert (refused.value.param, refused.value.code) == (f"{HYPER}.{name}", code)
    assert message in refused.value.message
    assert idle_service.http.get("/v1/fine_tuning/jobs").json()["data"] == []


@pytest.mark.parametrize("name", ["beta", "l2_multiplier", "label_smoothing"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_json_does_not_know_is_no_number(
    idle_service: Service, idle_body: dict[str, Any], name: str, number: str
) -> None:
    body = json.dumps({**idle_body, **dpo(**{name: 12345})}).replace("12345", number)
    answer = idle_service.http.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert error_of(answer)["param"] == f"{HYPER}.{name}"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised"),
        ({"method": {"type": "dpo", "dpo": {}, "reinforcement": {"grader": 5}}}, "method.reinforcement"),
        ({"method": {"type": "reinforcement", "dpo": {}}}, "method.dpo"),
        ({"method": {"type": "dpo", "dpo": {"beta": 0.1}}}, "method.dpo.beta"),
        ({"method": {"type": "dpo", "dpo": []}}, "method.dpo"),
        ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"beta": 0.1}}}}, None),
        ({"hyperparameters": {"beta": 0.1}, "method": {"type": "dpo"}}, "hyperparameters.beta"),
    ],
    ids=str,
)
def test_what_stands_at_a_wrong_place_is_a_400_that_names_it(
    idle_service: Service, idle_body: dict[str, Any], body: dict[str, Any], param: str | None
) -> None:
    answer = post(idle_service, {**idle_body, **body})

    assert answer.status_code == 400
    assert error_of(answer)["param"] == (param or "method.supervised.hyperparameters.beta")
    assert idle_service.http.get("/v1/fine_tuning/jobs").json()["data"] == []
