"""Every answer fits OpenAI's published schema: relaxed always, and to the letter with `strict_enums`."""

from __future__ import annotations

import pytest

from tests.api.service import Service
from tests.contract import faults, operations
from tests.contract.world import make_samples


def find_faults(service: Service, kind: str) -> list[str]:
    """Where the answers to all samples do not fit."""
    found: list[str] = []
    for make in make_samples(service):
        sample = make()
        url = f"/v1{sample.path}"
        answer = service.http.request(sample.method.upper(), url, json=sample.body, **(sample.form or {}))
        assert answer.status_code == 200, (sample, answer.text)
        if answer.headers["content-type"] == "application/json":
            found += faults(kind, sample.method, sample.template, answer.json())
    return found


@pytest.mark.parametrize(("kind", "strict"), [("relaxed", False), ("relaxed", True), ("strict", True)])
def test_every_answer_fits_what_openai_describes(service: Service, kind: str, strict: bool) -> None:
    service.server.settings.__dict__["strict_enums"] = strict

    assert find_faults(service, kind) == []


def test_to_the_letter_they_fit_with_the_setting_alone(service: Service) -> None:
    found = find_faults(service, "strict")

    for told in ("'paused' is not one of", "'evals' is not one of", "None is not of type 'string'"):
        assert any(told in fault for fault in found), told
    assert any("token_usage" in fault for fault in found)


def test_nothing_that_is_described_is_left_out(service: Service) -> None:
    asked = {(sample.method, sample.template) for sample in (make() for make in make_samples(service))}

    assert set(operations("relaxed")) == set(operations("strict")) == asked


def test_what_openai_does_not_know_is_shown_as_the_nearest_that_it_does(service: Service) -> None:
    service.server.settings.__dict__["strict_enums"] = True
    job_id = service.create_job()
    paused = service.client.fine_tuning.jobs.pause(job_id)

    assert (paused.status, paused.model_extra and paused.model_extra["x_status"]) == ("queued", "paused")
    service.client.fine_tuning.jobs.resume(job_id)
    service.validate()
    assert service.store.attempts.claim(job_id, "w", 60) is not None
    service.store.jobs.pause(job_id)
    pausing = service.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    assert (pausing["status"], pausing["x_status"]) == ("running", "pausing")
    file = service.http.post("/openai/files", files={"file": b"x"}, data={"purpose": "evals"}).json()
    assert (file["status"], file["purpose"]) == ("uploaded", "user_data")
