"""What a job may be asked for beyond OpenAI's API."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.job_shapes import post
from tests.api.service import Service, error_of

#: All of them, at some value.
OWN: dict[str, Any] = {
    "checkpoint_every": 20,
    "keep_best": True,
    "early_stopping": {"patience": 3, "min_delta": 0.5},
    "max_minutes": 0.5,
    "max_tokens": 10**6,
}
GRADER = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "a",
    "operation": "eq",
}
REINFORCEMENT = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}


@pytest.mark.parametrize("method", [None, {"type": "dpo"}], ids=["supervised", "dpo"])
def test_what_is_asked_for_beyond_openais_api_is_told_again(
    service: Service, good_body: dict[str, Any], method: Any
) -> None:
    body = {**good_body, "validation_file": service.upload(), "method": method}
    told = post(service, {**body, **OWN}).json()

    assert {name: told[name] for name in OWN} == OWN
    assert service.http.get(f"/v1/fine_tuning/jobs/{told['id']}").json() == told


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every", "integer_below_min_value"),
        ({"checkpoint_every": "3"}, "checkpoint_every", "invalid_type"),
        ({"keep_best": "yes"}, "keep_best", "invalid_type"),
        ({"max_minutes": 0}, "max_minutes", "decimal_below_min_value"),
        ({"max_minutes": "90"}, "max_minutes", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"early_stopping": 3}, "early_stopping", "invalid_type"),
        ({"early_stopping": {"patience": 0}}, "early_stopping.patience", "integer_below_min_value"),
        ({"early_stopping": {"min_delta": -0.1}}, "early_stopping.min_delta", "decimal_below_min_value"),
        ({"early_stopping": {"patients": 2}}, "early_stopping.patients", "unknown_parameter"),
    ],
    ids=str,
)
def test_a_value_out_of_its_range_is_a_400_that_names_the_field(
    idle_service: Service, idle_body: dict[str, Any], extra: dict[str, Any], param: str, code: str
) -> None:
    answer = post(idle_service, {**idle_body, **extra})

    assert answer.status_code == 400
    assert (error_of(answer)["param"], error_of(answer)["code"]) == (param, code)
    assert idle_service.http.get("/v1/fine_tuning/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("checkpoint_every", "hyperparameters.eval_interval"),
        ("keep_best", "'method.reinforcement.keep_best'"),
        ("early_stopping", "pause or cancel"),
    ],
)
def test_what_reinforcement_does_not_have_is_a_400_that_says_what_it_has_instead(
    idle_service: Service, idle_body: dict[str, Any], name: str, instead: str
) -> None:
    body = {**idle_body, "validation_file": idle_body["training_file"], "method": REINFORCEMENT}
    error = error_of(post(idle_service, {**body, name: OWN[name]}))

    assert error["message"].startswith(f"Invalid value for '{name}': 'method.type' is 'reinforcement', which ")
    assert instead in error["message"]
    assert (error["param"], error["code"]) == (name, "invalid_value")
    assert idle_service.http.get("/v1/fine_tuning/jobs").json()["data"] == []


@pytest.mark.parametrize("name", ["keep_best", "early_stopping"])
def test_what_goes_by_the_validation_loss_needs_a_validation_file(
    idle_service: Service, idle_body: dict[str, Any], name: str
) -> None:
    error = error_of(post(idle_service, {**idle_body, name: OWN[name]}))

    assert f"or leave out '{name}'" in error["message"]
    assert (error["param"], error["code"]) == ("validation_file", "missing_required_parameter")
    assert idle_service.http.get("/v1/fine_tuning/jobs").json()["data"] == []
    assert post(idle_service, {**idle_body, name: False, "training_file": "file-x"}).json()["error"]["param"] == (
        "training_file"
    )


def test_early_stopping_is_a_switch_too(service: Service, good_body: dict[str, Any]) -> None:
    body = {**good_body, "validation_file": service.upload()}
    defaults = {"patience": 2, "min_delta": 0.0}

    assert post(service, {**body, "early_stopping": True}).json()["early_stopping"] == defaults
    assert post(service, {**body, "early_stopping": {}}).json()["early_stopping"] == defaults
    assert "early_stopping" not in post(service, {**good_body, "early_stopping": False}).json()


def test_reinforcement_has_limits_too(service: Service, good_body: dict[str, Any]) -> None:
    limits = {"max_minutes": 0.5, "max_tokens": 1000}
    body = {**good_body, "validation_file": service.upload(), "method": REINFORCEMENT}
    told = post(service, {**body, **limits}).json()

    assert {name: told[name] for name in limits} == limits
