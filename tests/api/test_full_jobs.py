"""What is told and refused of jobs that train all weights, before any of them starts."""

from __future__ import annotations

from typing import Any

import pytest

from caesura.jobs import FULL_WEIGHTS, Job, Lease
from caesura.schema.adapters import AdapterOptions, choose_type
from caesura.settings import EMBEDDED_BASE_PATH, BaseModelSettings, Settings
from caesura.storage import put_files
from tests.api.job_shapes import post
from tests.api.service import Service, error_of

GRADER = {"type": "string_check", "name": "n", "input": "a", "reference": "{{ item.b }}", "operation": "eq"}
FULL = {"type": "full"}
OTHER_METHODS: list[dict[str, Any]] = [
    {"type": "dpo"},
    {"type": "reinforcement", "reinforcement": {"grader": GRADER}},
]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With a base whose jobs train all weights."""
    whole = BaseModelSettings(path=str(EMBEDDED_BASE_PATH), adapter=AdapterOptions(type="full"))
    return settings.model_copy(update={"models": {"whole": whole}})


def finish(service: Service, job: Job, lease: Lease) -> str:
    full = put_files(service.server.storage, "adapters", {FULL_WEIGHTS: b"weights"})
    service.store.attempts.finish(lease, 2, full, [service.results()], trained_tokens=1)
    return job.model_name


@pytest.fixture
def full_model(service: Service) -> str:
    return finish(service, *service.start_job(extra_body={"adapter": FULL}))


@pytest.mark.parametrize("method", [None, {"type": "supervised"}])
def test_a_supervised_job_may_train_all_weights_and_tells_so(
    service: Service, good_body: dict[str, Any], method: dict[str, Any] | None
) -> None:
    made = post(service, {**good_body, "adapter": FULL, "method": method}).json()

    assert made["adapter"] == FULL
    assert service.http.get(f"/v1/fine_tuning/jobs/{made['id']}").json()["adapter"] == FULL


def test_it_has_no_rank_to_tell_of_once_it_runs(service: Service) -> None:
    job, lease = service.start_job(extra_body={"adapter": FULL})
    plan = {"adapter_type": "full", "lora_rank": 0, "lora_alpha": 0.0, "lora_dropout": 0.0}
    service.store.attempts.set_plan(lease, {**plan, "target_modules": "all-linear", "n_epochs": 3})

    assert service.http.get(f"/v1/fine_tuning/jobs/{job.id}").json()["adapter"] == FULL


@pytest.mark.parametrize("method", OTHER_METHODS, ids=lambda method: method["type"])
@pytest.mark.parametrize("base", ["caesura-tiny", "whole"])
def test_other_methods_train_adapters_alone(
    service: Service, good_body: dict[str, Any], method: dict[str, Any], base: str
) -> None:
    asked = {} if base == "whole" else {"adapter": FULL}
    body = {**good_body, "model": base, "validation_file": good_body["training_file"], "method": method}
    answer = post(service, {**body, **asked})
    error = error_of(answer)

    assert (answer.status_code, error["param"], error["code"]) == (400, "adapter.type", "invalid_value")
    assert error["message"] == (
        f"The adapter type 'full' is for supervised jobs, and this one's method is '{method['type']}'. Use 'lora'."
    )
    assert post(service, {**body, "adapter": {"type": "lora"}}).status_code == 200


@pytest.mark.parametrize(
    "given", [{"rank": 8}, {"alpha": 4}, {"dropout": 0.1}, {"dropout": 0}, {"target_modules": "all-linear"}], ids=str
)
def test_what_says_how_an_adapter_is_made_is_refused(
    service: Service, good_body: dict[str, Any], full_model: str, given: dict[str, Any]
) -> None:
    (name,) = given
    for body in (
        {"adapter": {**FULL, **given}},
        {"model": "whole", "adapter": given},
        {"model": full_model, "adapter": given},
    ):
        answer = post(service, {**good_body, **body})
        error = error_of(answer)

        assert (answer.status_code, error["param"], error["code"]) == (400, f"adapter.{name}", "invalid_value")
        assert error["message"] == (
            f"'adapter.{name}' is of adapters, and this job trains all weights (adapter.type 'full'). Leave it out, or "
            "use the type 'lora'."
        )


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_no_adapter_is_put_on_weights_of_a_models_own(
    service: Service, good_body: dict[str, Any], full_model: str, kind: str
) -> None:
    answer = post(service, {**good_body, "model": full_model, "adapter": {"type": kind}})
    error = error_of(answer)

    assert (answer.status_code, error["param"], error["code"]) == (400, "adapter.type", "invalid_value")
    assert error["message"] == (
        f"Model '{full_model}' has weights of its own (adapter.type 'full'), and only supervised jobs of this type go "
        "on from it. Leave adapter.type out, or name 'full'."
    )


@pytest.mark.parametrize("method", OTHER_METHODS, ids=lambda method: method["type"])
@pytest.mark.parametrize("asked", [{}, {"adapter": FULL}, {"adapter": {"type": "lora"}}], ids=str)
def test_other_methods_do_not_go_on_from_it(
    service: Service, good_body: dict[str, Any], full_model: str, method: dict[str, Any], asked: dict[str, Any]
) -> None:
    body = {**good_body, "model": full_model, "validation_file": good_body["training_file"], "method": method}
    answer = post(service, {**body, **asked})
    error = error_of(answer)

    assert (answer.status_code, error["param"], error["code"]) == (400, "model", "invalid_value")
    assert error["message"].endswith("go on from it. Name its base, or another model.")


def test_what_goes_on(service: Service, good_body: dict[str, Any], full_model: str) -> None:
    tuned, lease = service.start_job()
    service.finish(lease, 2)
    for model, adapter in ((full_model, None), (full_model, FULL), (tuned.model_name, FULL), (tuned.model_name, None)):
        answer = post(service, {**good_body, "model": model, "adapter": adapter})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("asked", "defaults", "start_is_full", "chosen"),
    [
        ({}, {}, None, "lora"),
        ({}, {"type": "full"}, None, "full"),
        ({"type": "lora"}, {"type": "full"}, None, "lora"),
        ({}, {"type": "full"}, False, "lora"),
        ({}, {"type": "qlora"}, False, "qlora"),
        ({"type": "full"}, {}, False, "full"),
        ({}, {"type": "qlora"}, True, "full"),
        ({"type": "lora"}, {}, True, "lora"),
    ],
)
def test_the_job_comes_first_then_the_tuned_model_then_the_settings(
    asked: dict[str, Any], defaults: dict[str, Any], start_is_full: bool | None, chosen: str
) -> None:
    assert choose_type(asked, defaults, start_is_full) == chosen
