"""What a job may be asked to send to integrations, and how it tells of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from caesura.integrations import kinds
from tests.api.service import Service, error_of

KEY = "key-of-the-server-0123456789"
URI = "https://me:sesame@mlflow.example.com"
WANDB = {"type": "wandb", "wandb": {"project": "p"}}
MLFLOW = {"type": "mlflow", "mlflow": {"experiment": "e"}}
BOARD = {"type": "tensorboard"}


def installed(_library: str) -> bool:
    return True


def not_installed(_library: str) -> bool:
    return False


def set_up(service: Service, **settings: Any) -> None:
    server: Any = service.server
    server.settings.__dict__.update(settings)


@pytest.fixture
def body(service: Service) -> dict[str, Any]:
    return {"model": "caesura-tiny", "training_file": service.upload()}


@pytest.fixture
def configured(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A server with everything, as far as a request can tell."""
    set_up(service, wandb_api_key=SecretStr(KEY), mlflow_tracking_uri=SecretStr(URI))
    monkeypatch.setattr(kinds, "is_installed", installed)
    return service


def create(service: Service, body: dict[str, Any], *integrations: Any) -> Any:
    return service.http.post("/v1/fine_tuning/jobs", json={**body, "integrations": list(integrations)})


@pytest.mark.parametrize(
    ("integration", "remedy"),
    [
        (WANDB, "Weights & Biases. Set 'wandb_api_key' in the server's settings (or 'wandb_mode' to \"offline\")"),
        (MLFLOW, "MLflow. Set 'mlflow_tracking_uri' in the server's settings"),
    ],
)
def test_one_without_its_setting_is_refused_by_the_settings_name(
    service: Service, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch, integration: dict[str, Any], remedy: str
) -> None:
    monkeypatch.setattr(kinds, "is_installed", installed)
    answer = create(service, body, integration)

    assert answer.status_code == 400
    error = error_of(answer)
    assert error["message"] == f"This server is not set up for {remedy}, or leave this integration out."
    assert (error["param"], error["code"]) == ("integrations[0]", "integration_not_configured")
    assert service.client.fine_tuning.jobs.list().data == []


@pytest.mark.parametrize("integration", [WANDB, MLFLOW, BOARD], ids=lambda one: one["type"])
def test_one_without_its_library_is_refused_by_the_extras_name(
    configured: Service, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch, integration: dict[str, Any]
) -> None:
    monkeypatch.setattr(kinds, "is_installed", not_installed)
    answer = create(configured, body, integration)

    assert answer.status_code == 400
    assert f"pip install 'caesura[{integration['type']}]'" in error_of(answer)["message"]


def test_a_folder_of_a_librarys_name_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "left_behind").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])

    assert not kinds.is_installed("left_behind")
    assert not kinds.is_installed("not_there_at_all")
    assert kinds.is_installed("json")


def test_offline_it_needs_no_key(service: Service, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "is_installed", installed)
    set_up(service, wandb_mode="offline")

    assert create(service, body, WANDB).status_code == 200


def test_a_job_tells_what_it_was_asked_for_and_the_id_of_its_run(configured: Service, body: dict[str, Any]) -> None:
    asked = {"project": "p", "name": "n", "entity": "e", "tags": ["a", "b"]}
    job = create(configured, body, {"type": "wandb", "wandb": asked}, MLFLOW, BOARD).json()
    told: list[dict[str, Any]] = [
        {"type": "wandb", "wandb": {**asked, "run_id": job["id"]}},
        {"type": "mlflow", "mlflow": {"experiment": "e", "run_name": None, "tags": {}}},
        {"type": "tensorboard", "tensorboard": {}},
    ]

    assert job["integrations"] == told
    assert configured.http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["integrations"] == told
    assert configured.http.get("/v1/fine_tuning/jobs").json()["data"][0]["integrations"] == told


def test_openais_client_reads_it(configured: Service, body: dict[str, Any]) -> None:
    job = configured.client.fine_tuning.jobs.create(**body, integrations=[WANDB])  # type: ignore[list-item]

    assert job.integrations is not None
    assert (job.integrations[0].type, job.integrations[0].wandb.project) == ("wandb", "p")


def test_to_the_letter_a_job_shows_those_that_openai_has_and_all_beside_them(
    configured: Service, body: dict[str, Any]
) -> None:
    set_up(configured, strict_enums=True)
    job = create(configured, body, BOARD, WANDB).json()

    assert [one["type"] for one in job["integrations"]] == ["wandb"]
    assert [one["type"] for one in job["x_integrations"]] == ["tensorboard", "wandb"]


def test_no_answer_and_no_event_has_a_secret_of_the_settings(configured: Service, body: dict[str, Any]) -> None:
    job = create(configured, body, WANDB, MLFLOW)
    job_id = job.json()["id"]
    paths = ("", f"/{job_id}", f"/{job_id}/events")
    told = job.text + "".join(configured.http.get(f"/v1/fine_tuning/jobs{path}").text for path in paths)

    assert job_id in told
    assert KEY not in told
    assert "sesame" not in told


FAULTY: list[tuple[Any, str, str | None]] = [
    ([WANDB, WANDB], "integrations[1]", "invalid_value"),
    ([BOARD, BOARD], "integrations[1]", "invalid_value"),
    ([{"type": "comet"}], "integrations[0].type", "invalid_value"),
    ([{}], "integrations[0].type", "missing_required_parameter"),
    (["wandb"], "integrations[0]", "invalid_type"),
    ({}, "integrations", "invalid_type"),
    ([{"type": "wandb"}], "integrations[0].wandb", "missing_required_parameter"),
    ([{"type": "wandb", "wandb": {}}], "integrations[0].wandb.project", "missing_required_parameter"),
    ([{"type": "wandb", "wandb": {"project": ""}}], "integrations[0].wandb.project", "string_below_min_length"),
    ([{"type": "wandb", "wandb": {"project": "a/b"}}], "integrations[0].wandb.project", "invalid_value"),
    ([{"type": "wandb", "wandb": {"project": "p" * 129}}], "integrations[0].wandb.project", None),
    ([{"type": "wandb", "wandb": {"project": "p", "tags": ["t" * 65]}}], "integrations[0].wandb.tags[0]", None),
    ([{"type": "wandb", "wandb": {"project": "p", "api_key": "k"}}], "integrations[0].wandb.api_key", None),
    ([{"type": "mlflow", "mlflow": {}}], "integrations[0].mlflow.experiment", "missing_required_parameter"),
    (
        [{"type": "mlflow", "mlflow": {"experiment": "e", "tags": {"a;b": "v"}}}],
        "integrations[0].mlflow.tags.a;b",
        None,
    ),
    ([{"type": "tensorboard", "tensorboard": {"dir": "/"}}], "integrations[0].tensorboard.dir", None),
    ([WANDB] * 6, "integrations", "array_above_max_length"),
]


@pytest.mark.parametrize(
    ("integrations", "param", "code"),
    FAULTY,
    ids=lambda value: value or "" if isinstance(value, str | None) else json.dumps(value)[:60],
)
def test_a_faulty_one_is_refused_by_name(
    configured: Service, body: dict[str, Any], integrations: Any, param: str, code: str | None
) -> None:
    answer = configured.http.post("/v1/fine_tuning/jobs", json={**body, "integrations": integrations})

    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"] == param, error
    assert code in (None, error["code"]), error


def test_the_same_project_of_another_team_is_another_run(configured: Service, body: dict[str, Any]) -> None:
    other = {"type": "wandb", "wandb": {"project": "p", "entity": "others"}}

    assert create(configured, body, WANDB, other).status_code == 200
