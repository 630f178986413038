from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import openai
import pytest

from caesura.settings import Settings
from tests.api.service import Service, assert_shape, error_of

MODEL = {"id": str, "object": str, "created": int, "owned_by": str}
SLASHED = "Qwen/Qwen3-0.6B"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A second base, whose name holds a slash."""
    return Settings.model_validate({"data_dir": tmp_path, "models": {SLASHED: {"path": "/models/qwen"}}})


def test_models_are_told_in_openais_form(service: Service) -> None:
    models = service.http.get("/v1/models").json()

    assert_shape(models, {"object": str, "data": [MODEL]})
    assert [model["id"] for model in models["data"]] == ["caesura-tiny", SLASHED]
    assert {model["object"] for model in models["data"]} == {"model"}
    assert_shape(service.http.get("/v1/models/caesura-tiny").json(), MODEL)


def test_bases_tuned_models_and_checkpoints_are_listed(service: Service) -> None:
    job, lease = service.start_job()
    service.save(lease, 1)
    service.finish(lease, 2)

    names = [model.id for model in service.client.models.list()]
    assert names == ["caesura-tiny", SLASHED, f"{job.model_name}:ckpt-step-1", job.model_name]
    assert service.client.models.retrieve(job.model_name).owned_by == "caesura"


@pytest.mark.parametrize("suffix", ["mine", "a/b", "ü?#%2F", ". ..", "x" * 64])
def test_a_tuned_model_is_found_and_deleted_under_its_name(service: Service, suffix: str) -> None:
    job, lease = service.start_job(model=SLASHED, suffix=suffix)
    service.finish(lease, 1)
    name = service.client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert name is not None
    assert name.startswith("ft:Qwen--Qwen3-0.6B:caesura:")
    assert service.client.models.retrieve(name).id == name
    deleted = service.client.models.delete(name)

    assert (deleted.id, deleted.object, deleted.deleted) == (name, "model", True)
    for ask in (service.client.models.retrieve, service.client.models.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(name)
        assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    assert service.client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model == name


@pytest.mark.parametrize("path", [SLASHED, quote(SLASHED, safe="")])
def test_a_slash_in_a_name_may_be_escaped_or_not(service: Service, path: str) -> None:
    assert service.http.get(f"/v1/models/{path}").json()["id"] == SLASHED


def test_an_alias_is_shown_under_the_name_that_was_asked_for(service: Service) -> None:
    assert service.client.models.retrieve("gpt-4o-mini").id == "gpt-4o-mini"
    assert "gpt-4o-mini" not in {model.id for model in service.client.models.list()}


@pytest.mark.parametrize("name", ["caesura-tiny", "gpt-4o-mini", SLASHED])
def test_a_base_cannot_be_deleted(service: Service, name: str) -> None:
    with pytest.raises(openai.PermissionDeniedError, match=f"The base model '{name}' cannot be deleted"):
        service.client.models.delete(name)


def test_an_unknown_model_is_not_found(service: Service) -> None:
    answer = service.http.get("/v1/models/ft:none:org::12345678")

    assert answer.status_code == 404
    assert error_of(answer) == {
        "message": "The model 'ft:none:org::12345678' does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
