"""A job that cannot fit into the memory is not made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caesura.api.memory import check_memory
from caesura.errors import InvalidRequest
from caesura.settings import Settings
from caesura.training import footprint
from tests.api.job_shapes import post
from tests.api.service import Service, error_of
from tests.training.test_footprint import huge_base


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    models: Any = {"huge": {"path": str(huge_base(tmp_path / "huge"))}, "away": {"path": str(tmp_path / "away")}}
    return Settings(data_dir=tmp_path / "data", models=models, device="cpu", dtype="bfloat16")


def test_a_base_that_cannot_fit_is_a_400_with_what_it_needs_and_what_there_is(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 25165824 kB\n")
    monkeypatch.setattr(footprint, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(footprint, "_LIMITS", ())
    answer = post(service, {"model": "huge", "training_file": service.upload()})

    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["param"], error["code"]) == ("model", "out_of_memory")
    assert error["message"].startswith("Training 'huge' needs about 1")
    assert (
        "70.00 billion parameters in bfloat16, passes of 1024 tokens), and this machine has 24.0 GiB"
        in (error["message"])
    )
    assert str(tmp_path) not in error["message"]
    assert service.client.fine_tuning.jobs.list().data == []


@pytest.mark.parametrize("model", ["caesura-tiny", "away"])
def test_a_base_that_fits_or_is_not_known_is_taken(service: Service, model: str) -> None:
    assert post(service, {"model": model, "training_file": service.upload()}).status_code == 200


@pytest.mark.parametrize("values", [{"device": "cuda"}, {"database_url": "postgresql://nobody@nowhere/none"}], ids=str)
def test_nothing_is_refused_where_the_job_may_run_elsewhere(settings: Settings, values: dict[str, Any]) -> None:
    elsewhere = Settings.model_validate(settings.model_dump() | values)

    check_memory(elsewhere, "huge", "supervised")
    with pytest.raises(InvalidRequest):
        check_memory(settings, "huge", "supervised")


def test_all_weights_need_many_times_what_an_adapter_needs_and_the_error_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caesura.api.memory.memory_bytes", lambda: int(1e12))
    check_memory(settings, "huge", "supervised", "lora")
    with pytest.raises(
        InvalidRequest, match=r"Training all weights of 'huge' needs about 19.* GiB. Train an adapter \("
    ):
        check_memory(settings, "huge", "supervised", "full")


def test_a_job_of_all_weights_is_checked_as_one(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caesura.api.memory.memory_bytes", lambda: int(1e12))
    body = {"model": "huge", "training_file": service.upload()}

    assert post(service, body).status_code == 200
    assert error_of(post(service, {**body, "adapter": {"type": "full"}}))["code"] == "out_of_memory"


def test_reinforcement_needs_the_base_twice_unless_another_server_samples(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caesura.api.memory.memory_bytes", lambda: int(130e9))
    check_memory(settings, "huge", "dpo")
    remote = {"sampling": "engine", "engine_url": "http://127.0.0.1:9"}
    check_memory(Settings.model_validate(settings.model_dump() | remote), "huge", "reinforcement")
    with pytest.raises(InvalidRequest, match="needs about 302"):
        check_memory(settings, "huge", "reinforcement")
