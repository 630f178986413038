"""What a job may ask for of its adapter, and what it tells of it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import caesura
from caesura import examination
from caesura.examination import Examined, Examiner
from caesura.models import qlora
from caesura.schema.adapters import AdapterOptions
from caesura.settings import EMBEDDED_BASE_PATH, BaseModelSettings, Settings
from tests.api.job_shapes import post
from tests.api.service import Service, error_of

GRADER = {"type": "string_check", "name": "n", "input": "a", "reference": "{{ item.b }}", "operation": "eq"}
LAYERS = ["layers.0.q_proj", "layers.0.v_proj", "layers.1.q_proj", "layers.1.v_proj"]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With bases whose jobs have adapters of another kind."""
    path = str(EMBEDDED_BASE_PATH)
    of_base = {"small": {"rank": 2, "dropout": 0.1}, "whole": {"type": "full"}, "odd": {"target_modules": ["up"]}}
    models = {name: BaseModelSettings(path=path, adapter=AdapterOptions(**given)) for name, given in of_base.items()}
    return settings.model_copy(update={"models": models})


class ExaminerDouble(Examiner):
    """Finds what it is told to find."""

    def __init__(self, found: Examined | None) -> None:
        super().__init__()
        self._answer = found

    def examine(self, name: str, path: str) -> Examined | None:
        return self._answer


def finding(service: Service, monkeypatch: pytest.MonkeyPatch, found: Examined | None) -> None:
    double = ExaminerDouble(found)
    monkeypatch.setattr(Examiner, "examine", lambda _self, *given: double.examine(*given))


@pytest.mark.parametrize(
    "method",
    [{"type": "supervised"}, {"type": "dpo"}, {"type": "reinforcement", "reinforcement": {"grader": GRADER}}],
    ids=lambda method: method["type"],
)
def test_an_adapter_is_told_again_whatever_the_method(service: Service, method: dict[str, Any]) -> None:
    asked = {"rank": 8, "target_modules": "all-linear"}
    file = service.upload()
    body = {"model": "caesura-tiny", "training_file": file, "validation_file": file, "method": method}
    made = post(service, {**body, "adapter": {**asked, "alpha": None}}).json()

    assert made["adapter"] == asked
    assert service.http.get(f"/v1/fine_tuning/jobs/{made['id']}").json()["adapter"] == asked


def test_an_adapter_is_told_as_it_was_resolved_once_it_is(service: Service) -> None:
    job, lease = service.start_job(extra_body={"adapter": {"rank": 8, "dropout": 0.05}})
    plan = {
        "adapter_type": "lora",
        "lora_rank": 8,
        "lora_alpha": 16.0,
        "lora_dropout": 0.05,
        "target_modules": "all-linear",
    }
    service.store.attempts.set_plan(lease, {**plan, "n_epochs": 3})

    resolved = {"type": "lora", "rank": 8, "alpha": 16.0, "dropout": 0.05, "target_modules": "all-linear"}
    assert service.http.get(f"/v1/fine_tuning/jobs/{job.id}").json()["adapter"] == resolved
    assert service.http.get("/v1/fine_tuning/jobs").json()["data"][0]["adapter"] == resolved


def test_a_job_that_asks_for_none_tells_of_none(service: Service, good_body: dict[str, Any]) -> None:
    assert "adapter" not in post(service, good_body).json()
    assert "adapter" not in post(service, {**good_body, "adapter": None}).json()


@pytest.mark.parametrize(
    ("adapter", "param", "code", "message"),
    [
        ({"rank": 0}, "adapter.rank", "integer_below_min_value", "Expected a value >= 1, but got 0"),
        ({"rank": 1025}, "adapter.rank", "integer_above_max_value", "Expected a value <= 1024, but got 1025"),
        ({"rank": 2.5}, "adapter.rank", "invalid_type", "expected an integer, but got a decimal"),
        ({"rank": "8"}, "adapter.rank", "invalid_type", "expected an integer, but got a string"),
        ({"alpha": 0}, "adapter.alpha", "decimal_below_min_value", "Expected a value > 0"),
        ({"dropout": 1}, "adapter.dropout", "decimal_above_max_value", "Expected a value < 1"),
        ({"dropout": -0.1}, "adapter.dropout", "decimal_below_min_value", "Expected a value >= 0"),
        (
            {"target_modules": []},
            "adapter.target_modules",
            "empty_array",
            "Invalid 'adapter.target_modules'",
        ),
        ({"target_modules": [""]}, "adapter.target_modules[0]", "string_below_min_length", "string too short"),
        ({"target_modules": [7]}, "adapter.target_modules[0]", "invalid_type", "expected a string"),
        ({"target_modules": "q_proj"}, "adapter.target_modules", "invalid_value", "'all-linear'"),
        ({"type": "dora"}, "adapter.type", "invalid_value", "Supported values are: 'lora', 'qlora', and 'full'"),
        ({"r": 8}, "adapter.r", "unknown_parameter", "Unknown parameter: 'adapter.r'"),
        (8, "adapter", "invalid_type", "expected an object"),
    ],
)
def test_a_faulty_adapter_is_refused_by_name_and_value(
    service: Service, good_body: dict[str, Any], adapter: Any, param: str, code: str, message: str
) -> None:
    answer = post(service, {**good_body, "adapter": adapter})
    error = error_of(answer)

    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert message in error["message"]


def test_a_layer_that_the_base_has_not_is_refused_beside_those_it_has(
    service: Service, good_body: dict[str, Any]
) -> None:
    """By the process that asks `transformers`."""
    good = post(service, {**good_body, "adapter": {"target_modules": ["v_proj", "self_attn.q_proj"]}})
    assert good.status_code == 200

    answer = post(service, {**good_body, "adapter": {"target_modules": ["v_proj", "query"]}})
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, "adapter.target_modules", "invalid_value")
    assert error["message"] == (
        "Invalid value for 'adapter.target_modules': no linear layer of this model is called 'query'. There are: "
        "'down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj'. Name some of these, or "
        "'all-linear' for all of them."
    )
    assert len(service.client.fine_tuning.jobs.list().data) == 1


@pytest.mark.parametrize("found", [None, Examined(has_gpu=False, layers=None)])
def test_where_the_base_cannot_be_looked_at_the_job_is_made_and_finds_out_itself(
    service: Service, good_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch, found: Examined | None
) -> None:
    finding(service, monkeypatch, found)

    assert post(service, {**good_body, "adapter": {"target_modules": ["query"]}}).status_code == 200


def test_qlora_is_refused_without_a_gpu_with_the_remedy(
    service: Service, good_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    finding(service, monkeypatch, Examined(has_gpu=False, layers=LAYERS))
    error = error_of(post(service, {**good_body, "adapter": {"type": "qlora"}}))

    assert (error["param"], error["code"]) == ("adapter.type", "invalid_value")
    assert error["message"] == (
        "The adapter type 'qlora' needs a GPU, and torch sees none here (or the setting 'device' is 'cpu'): run the "
        "server where one is; or use 'lora'."
    )


def test_qlora_is_refused_without_its_packages_and_taken_with_them(
    service: Service, good_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    finding(service, monkeypatch, Examined(has_gpu=True, layers=LAYERS))
    for missing in ("bitsandbytes", None):
        monkeypatch.setattr(qlora, "find_spec", lambda name, missing=missing: None if name == missing else "found")
        answer = post(service, {**good_body, "adapter": {"type": "qlora", "rank": 4}})
        if missing is None:
            assert answer.json()["adapter"] == {"type": "qlora", "rank": 4}
        else:
            assert error_of(answer)["message"] == (
                "The adapter type 'qlora' needs the package 'bitsandbytes', which is not installed here: pip install "
                "'caesura[qlora]'; or use 'lora'."
            )


@pytest.mark.parametrize(
    ("base", "method", "param"),
    [("whole", {"type": "dpo"}, "adapter.type"), ("odd", {"type": "supervised"}, "adapter.target_modules")],
)
def test_what_a_bases_settings_ask_for_is_looked_at_unless_the_job_asks_for_something_else(
    service: Service,
    good_body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    method: dict[str, Any],
    param: str,
) -> None:
    finding(service, monkeypatch, Examined(has_gpu=False, layers=LAYERS))
    body = {**good_body, "model": base, "method": method}

    assert error_of(post(service, body))["param"] == param
    own = {"type": "lora", "target_modules": "all-linear"}
    assert post(service, {**body, "adapter": own}).status_code == 200
    assert post(service, {**body, "model": "small"}).status_code == 200


def test_an_examiner_remembers_what_it_found_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answers = [None, Examined(has_gpu=False, layers=None), Examined(has_gpu=False, layers=LAYERS)]

    def ask(name: str, _path: str) -> Examined | None:
        asked.append(name)
        return answers[len(asked) - 1]

    monkeypatch.setattr(examination, "_ask", ask)
    examiner = Examiner()

    assert [examiner.examine("micro", "folder") for _ in range(5)] == [*answers, answers[-1], answers[-1]]
    assert len(asked) == 3


@pytest.mark.parametrize("program", ["caesura.nothing", "caesura.models.examine"])
def test_a_process_that_cannot_tell_is_no_fault_of_the_request(
    monkeypatch: pytest.MonkeyPatch, program: str, tmp_path: Any
) -> None:
    """One that ends at once, and one that finds no base."""
    original = examination.subprocess.Popen
    monkeypatch.setattr(
        examination.subprocess, "Popen", lambda command, **given: original([*command[:2], program], **given)
    )
    found = Examiner().examine("none", str(tmp_path))

    assert found == (None if program == "caesura.nothing" else Examined(has_gpu=False, layers=None))


def test_the_packages_of_qlora_are_those_of_its_extra() -> None:
    project = tomllib.loads((Path(caesura.__file__).parent.parent / "pyproject.toml").read_text())["project"]
    extra = {re.match(r"[a-z]+", requirement)[0] for requirement in project["optional-dependencies"]["qlora"]}  # type: ignore[index]

    assert extra == set(qlora.PACKAGES)
