"""`/metrics`: what it tells, and to whom."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from caesura import __version__
from caesura.app import build_app
from caesura.errors import DatabaseUnavailable
from caesura.jobs import Status
from caesura.store.rows import Telling
from caesura.tenancy import Role
from tests.api.service import KEY, HttpServer, Service, build_service, error_of

PAGE = Path(__file__).parent.parent.parent / "docs" / "metrics.md"
Labels = dict[str, str]


def exposed(service: Service) -> str:
    answer = service.http.get("/metrics")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return answer.text


def samples(service: Service, name: str) -> list[tuple[Labels, float]]:
    families = text_string_to_metric_families(exposed(service))
    return [(sample.labels, sample.value) for family in families for sample in family.samples if sample.name == name]


def value(service: Service, name: str, **labels: str) -> float:
    (found,) = [number for given, number in samples(service, name) if labels.items() <= given.items()]
    return found


def test_jobs_are_counted_by_status_those_of_every_project(service: Service) -> None:
    job, lease = service.start_job()
    service.create_job(training_file=job.training_file)
    _, theirs = service.store.keys.create("theirs", organization="caesura", project="theirs")
    with OpenAI(base_url=f"{service.http_server.origin}/v1", api_key=theirs) as other:
        file = other.files.create(file=("t.jsonl", b'{"messages": []}\n'), purpose="fine-tune").id
        other.fine_tuning.jobs.create(model="caesura-tiny", training_file=file)

    counted = {labels["status"]: number for labels, number in samples(service, "caesura_jobs")}
    assert counted == dict.fromkeys(map(str, Status), 0) | {"running": 1, "validating_files": 2}
    service.finish(lease, 1)
    service.http.delete(f"/v1/fine_tuning/jobs/{job.id}").raise_for_status()
    assert value(service, "caesura_jobs", status="running") == 0
    assert value(service, "caesura_jobs", status="succeeded") == 1  # deleted, but it did succeed


def test_a_step_is_counted_once_with_the_time_that_it_took_first(service: Service) -> None:
    _, lease = service.start_job()
    service.train(lease, 1, 2, took_s=0.3)
    service.train(lease, 2, took_s=7.0)  # done again after a crash
    service.train(lease, 3, took_s=4000.0)

    def buckets() -> dict[float, float]:
        of_steps = samples(service, "caesura_step_seconds_bucket")
        assert {labels["method"] for labels, _ in of_steps} == {"supervised"}
        return {float(labels["le"]): number for labels, number in of_steps}

    assert buckets()[0.25] == 0
    assert buckets()[0.5] == buckets()[600] == 2
    assert buckets()[float("inf")] == value(service, "caesura_step_seconds_count") == 3
    assert value(service, "caesura_step_seconds_sum") == pytest.approx(4000.6)


def test_the_wait_for_a_start_is_counted_once_and_every_attempt(
    service: Service, later: Callable[[float], None]
) -> None:
    job_id = service.create_job()
    service.validate()
    later(100)
    claimed = service.store.attempts.claim(job_id, "worker-1", 60)
    assert claimed is not None
    service.store.recovery.worker_gone("worker-1", "killed")
    assert service.store.attempts.claim(job_id, "worker-2", 60) is not None

    assert value(service, "caesura_queue_wait_seconds_count", method="supervised") == 1
    assert 100 <= value(service, "caesura_queue_wait_seconds_sum") < 110
    assert value(service, "caesura_queue_wait_seconds_bucket", le="300.0") == 1
    assert value(service, "caesura_queue_wait_seconds_bucket", le="60.0") == 0
    assert value(service, "caesura_attempts_total", method="supervised") == 2
    assert value(service, "caesura_workers_lost_total", when="training") == 1


def test_a_worker_that_ends_before_it_has_its_job_is_lost_too(service: Service) -> None:
    job_id = service.create_job()
    service.validate()
    service.store.recovery.launch_failed(job_id, 0, "exit code 1")

    assert samples(service, "caesura_workers_lost_total") == [({"when": "starting"}, 1)]
    assert service.executor.started == [job_id]
    assert value(service, "caesura_worker_starts_total") == 1
    assert samples(service, "caesura_attempts_total") == []


def test_grades_are_counted_with_their_time_and_their_errors(service: Service) -> None:
    _, lease = service.start_job(**service.reinforced())
    told = Telling("told", data={"step": 1}, type="metrics", key="step:1")
    rollouts: list[dict[str, Any]] = [
        {"step": 1, "split": "train", "errors": errors, "grading_time": 0.05}
        for errors in ({}, {"other_error": "Odd."}, {"other_error": "Odd.", "sample_parse_error": "No JSON."})
    ]
    for _ in range(2):  # the second time it is a step that is done again
        service.store.attempts.record_steps(lease, 1, [told], 0, rollouts)

    assert value(service, "caesura_grade_seconds_count", type="string_check") == 3
    assert value(service, "caesura_grade_seconds_sum") == pytest.approx(0.15)
    errors = {labels["error"]: number for labels, number in samples(service, "caesura_grade_errors_total")}
    assert errors == {"other_error": 2, "sample_parse_error": 1}


def test_requests_are_counted_by_route_and_never_by_what_was_asked_for(service: Service) -> None:
    file = service.upload()
    service.http.get(f"/v1/files/{file}")
    service.http.get("/v1/files/file-none")
    service.http.get("/v1/models/caesura-tiny")
    service.http.get("/v1/secret-path")
    service.http.request("PURGE", "/v1/files")
    httpx.get(f"{service.http_server.origin}/v1/files/{file}")  # without a key

    counted = {
        (labels["method"], labels["route"], labels["status"]): number
        for labels, number in samples(service, "caesura_request_seconds_count")
    }
    assert counted == {
        ("POST", "/v1/files", "2xx"): 1,
        ("GET", "/v1/files/{file_id}", "2xx"): 1,
        ("GET", "/v1/files/{file_id}", "4xx"): 1,
        ("GET", "/v1/models/{name}", "2xx"): 1,
        ("none", "none", "4xx"): 3,
    }
    assert value(service, "caesura_request_seconds_count", route="/metrics") == 1
    assert "secret" not in exposed(service)
    assert "PURGE" not in exposed(service)
    assert file not in exposed(service)


def test_the_server_tells_what_it_is(service: Service) -> None:
    assert samples(service, "caesura_build_info") == [({"version": __version__}, 1)]
    assert value(service, "caesura_slots") == service.server.settings.slots
    assert value(service, "process_resident_memory_bytes") > 2**20


def test_two_servers_over_one_store_tell_the_same_of_jobs_and_each_its_own_requests(
    service: Service, http_server: HttpServer
) -> None:
    _, lease = service.start_job()
    service.train(lease, 1, 2)
    first = exposed(service)
    other = build_app(service.server, KEY)
    http_server.app = other
    second = exposed(service)
    http_server.app = service.app

    def of_store(text: str) -> list[str]:
        names = "caesura_(jobs|step|queue|grade|attempts|workers_lost)"
        return [line for line in text.splitlines() if re.match(names, line)]

    assert of_store(first) == of_store(second) != []
    assert 'route="/v1/fine_tuning/jobs"' in first
    assert 'route="/v1/fine_tuning/jobs"' not in second


def test_openmetrics_is_answered_to_who_asks_for_it(service: Service) -> None:
    answer = service.http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})

    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("role", "reads", "works"),
    [(Role.MONITOR, True, False), (Role.MEMBER, False, True), (Role.OWNER, False, True), (Role.ADMIN, True, True)],
)
def test_a_role_says_who_reads_the_metrics(service: Service, role: Role, reads: bool, works: bool) -> None:
    _, key = service.store.keys.create("k", organization="caesura", role=role)
    with OpenAI(base_url=f"{service.http_server.origin}/v1", api_key=key, max_retries=0) as client:
        answer = httpx.get(f"{service.http_server.origin}/metrics", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == (200 if reads else 403)
        if not reads:
            assert error_of(answer)["code"] == "insufficient_permissions"
        if works:
            assert client.models.list().data
        else:
            with pytest.raises(openai.PermissionDeniedError, match="'monitor'"):
                client.models.list()


def test_without_a_key_nothing_is_told(service: Service) -> None:
    answer = httpx.get(f"{service.http_server.origin}/metrics")

    assert answer.status_code == 401
    assert "caesura_" not in answer.text


def test_a_store_that_is_away_is_no_row_of_zeros(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(service.server.store.measures, "read", away)

    assert service.http.get("/metrics").status_code == 503


def test_the_page_names_every_metric_with_its_type_and_labels_and_no_other(service: Service) -> None:
    _, lease = service.start_job(**service.reinforced())
    told = Telling("told", data={"step": 1}, type="metrics", key="step:1")
    graded = {"step": 1, "split": "train", "errors": {"other_error": "Odd."}, "grading_time": 0.05}
    service.store.attempts.record_steps(lease, 1, [told], 0, [graded], {"step:1": 0.5})
    service.store.recovery.worker_gone("worker-here", "killed")
    service.http.get("/metrics")

    said = {
        cells[0].strip("`"): (cells[1], set(re.findall(r"`(\w+)`", cells[2])))
        for cells in (re.split(r" *\| *", line.strip("| ")) for line in PAGE.read_text().splitlines())
        if cells[0].startswith(("`caesura_", "`process_"))
    }
    found: dict[str, tuple[str, set[str]]] = {}
    for family in text_string_to_metric_families(exposed(service)):
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = (family.type, labels)
    assert said == found


def test_every_application_has_numbers_of_its_own(service: Service, http_server: HttpServer) -> None:
    settings = service.server.settings.model_copy(update={"data_dir": service.server.settings.data_dir / "other"})
    other = build_service(settings, http_server, service.client, service.http)
    service.http.get("/v1/models")

    assert value(other, "caesura_request_seconds_count", route="/v1/models") == 1
    http_server.app = service.app
    assert 'route="/v1/models"' not in exposed(service)
    other.close()
