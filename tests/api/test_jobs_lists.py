from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from caesura.api import events as job_events
from caesura.api import jobs
from tests.api.job_shapes import CHECKPOINT, EVENT, JOB
from tests.api.service import Service, assert_shape, error_of, rows


def test_jobs_are_listed_newest_first_in_pages(service: Service, good_body: dict[str, Any]) -> None:
    empty = service.http.get("/v1/fine_tuning/jobs").json()
    ids = [service.create_job(**good_body) for _ in range(3)]
    page = service.http.get("/v1/fine_tuning/jobs", params={"limit": 2}).json()

    assert empty == {"object": "list", "data": [], "has_more": False}
    assert_shape(page, {"object": str, "data": [JOB], "has_more": bool})
    assert ([job["id"] for job in page["data"]], page["has_more"]) == (ids[:0:-1], True)
    assert [job.id for job in service.client.fine_tuning.jobs.list(limit=1)] == ids[::-1]


def test_a_limit_beyond_the_largest_is_cut_to_it(
    service: Service, good_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_JOBS_PAGE", 2)
    monkeypatch.setattr(job_events, "MAX_PAGE", 1)
    job_ids = [service.create_job(**good_body) for _ in range(3)]

    page = service.http.get("/v1/fine_tuning/jobs?limit=" + "9" * 30).json()
    assert (len(page["data"]), page["has_more"]) == (2, True)
    events = service.http.get(f"/v1/fine_tuning/jobs/{job_ids[0]}/events?limit=1000000").json()
    assert (len(events["data"]), events["has_more"]) == (1, True)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"metadata[team]": "blue"}, ["both", "blue"]),
        ({"metadata[team]": "blue", "metadata[run]": "1"}, ["both"]),
        ({"metadata[team]": "red"}, []),
        ({"metadata[none]": "blue"}, []),
        ({"metadata[two words.]": "ü & +"}, ["odd"]),
        ({"metadata": "null"}, ["without"]),
        ({"metadata": ""}, ["without"]),
        ({}, ["odd", "both", "without", "blue"]),
    ],
)
def test_jobs_are_filtered_by_metadata(
    service: Service, good_body: dict[str, Any], query: dict[str, str], expected: list[str]
) -> None:
    service.create_job(**good_body, suffix="blue", metadata={"team": "blue"})
    service.create_job(**good_body, suffix="without")
    service.create_job(**good_body, suffix="both", metadata={"team": "blue", "run": "1"})
    service.create_job(**good_body, suffix="odd", metadata={"two words.": "ü & +"})

    listed = service.http.get("/v1/fine_tuning/jobs", params=query).json()["data"]
    assert [job["user_provided_suffix"] for job in listed] == expected


def test_the_sdks_metadata_filter_works_across_pages(service: Service, good_body: dict[str, Any]) -> None:
    ids = [service.create_job(**good_body, metadata={"team": team}) for team in ("blue", "red", "blue")]

    listed = service.client.fine_tuning.jobs.list(metadata={"team": "blue"}, limit=1)
    assert [job.id for job in listed] == [ids[2], ids[0]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("status=cancelled", ["dpo"]),
        ("status=queued", ["chat", "pairs"]),
        ("status=cancelled&status=queued", ["dpo", "chat", "pairs"]),
        ("status=paused", []),
        ("method=dpo", ["dpo", "pairs"]),
        ("method=dpo&status=queued", ["pairs"]),
        ("method=supervised", ["chat"]),
        ("method=reinforcement", []),
        ("method=dpo&metadata[team]=blue", ["pairs"]),
        ("method=", ["dpo", "chat", "pairs"]),
    ],
)
def test_jobs_are_filtered_by_status_and_method(service: Service, query: str, expected: list[str]) -> None:
    pair = {"input": {"messages": [{"role": "user", "content": "Hi"}]}}
    pair |= {f"{side}_output": [{"role": "assistant", "content": side}] for side in ("preferred", "non_preferred")}
    dpo: dict[str, Any] = {"training_file": service.upload(rows(row=pair)), "method": {"type": "dpo"}}
    service.create_job(**dpo, suffix="pairs", metadata={"team": "blue"})
    service.create_job(suffix="chat")
    cancelled = service.create_job(**dpo, suffix="dpo")
    service.client.fine_tuning.jobs.cancel(cancelled)
    service.validate()

    listed = service.http.get(f"/v1/fine_tuning/jobs?{query}").json()["data"]
    assert [job["user_provided_suffix"] for job in listed] == expected


def test_a_filtered_list_goes_on_behind_its_last_job(service: Service, good_body: dict[str, Any]) -> None:
    ids = [service.create_job(**good_body) for _ in range(4)]
    service.client.fine_tuning.jobs.cancel(ids[1])
    service.client.fine_tuning.jobs.cancel(ids[3])

    asked = {"status": "cancelled", "limit": 1}
    first = service.http.get("/v1/fine_tuning/jobs", params=asked).json()
    second = service.http.get("/v1/fine_tuning/jobs", params={**asked, "after": ids[3]}).json()
    assert ([job["id"] for job in first["data"]], first["has_more"]) == ([ids[3]], True)
    assert ([job["id"] for job in second["data"]], second["has_more"]) == ([ids[1]], False)


@pytest.mark.parametrize("key", ["a'b", 'a"b', "", ".", "a.b[0]", "[0]", "$", "$.a", "%", "\\", "ключ", "👩‍🚀"])
def test_a_metadata_key_may_hold_any_characters(service: Service, good_body: dict[str, Any], key: str) -> None:
    job_id = service.create_job(**good_body, metadata={key: "v"})
    service.create_job(**good_body, metadata={"other": "v"})

    answer = service.http.get("/v1/fine_tuning/jobs", params={f"metadata[{key}]": "v"})
    assert answer.status_code == 200
    assert [job["id"] for job in answer.json()["data"]] == [job_id]


@pytest.mark.parametrize(
    ("path", "param", "code"),
    [
        ("?after=ftjob-none", "after", None),
        ("?limit=0", "limit", "integer_below_min_value"),
        ("?limit=-1", "limit", "integer_below_min_value"),
        ("?limit=x", "limit", "invalid_type"),
        ("?status=done", "status[0]", "invalid_value"),
        ("?method=sft", "method", "invalid_value"),
        ("/{job}/events?stream=perhaps", "stream", "invalid_type"),
        ("/{job}/events?after=ftevent-none", "after", None),
        ("/{job}/events?limit=0", "limit", "integer_below_min_value"),
        ("/{job}/checkpoints?after=ftckpt_none", "after", None),
        ("/{job}/checkpoints?limit=0", "limit", "integer_below_min_value"),
    ],
)
def test_a_bad_query_names_its_parameter(service: Service, path: str, param: str, code: str | None) -> None:
    answer = service.http.get("/v1/fine_tuning/jobs" + path.format(job=service.create_job()))

    assert answer.status_code == 400
    assert (error_of(answer)["param"], error_of(answer)["code"]) == (param, code)


def test_an_event_of_another_job_is_no_cursor(service: Service, good_body: dict[str, Any]) -> None:
    one, other = service.create_job(**good_body), service.create_job(**good_body)
    event = service.client.fine_tuning.jobs.list_events(one).data[0]

    with pytest.raises(openai.BadRequestError):
        service.client.fine_tuning.jobs.list_events(other, after=event.id)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/checkpoints"),
        ("POST", "/cancel"),
        ("POST", "/pause"),
        ("POST", "/resume"),
    ],
)
def test_an_unknown_job_is_not_found(idle_service: Service, method: str, path: str) -> None:
    answer = idle_service.http.request(method, f"/v1/fine_tuning/jobs/ftjob-x{path}")

    assert answer.status_code == 404
    assert error_of(answer) == {
        "message": "Could not find fine tune: ftjob-x",
        "type": "invalid_request_error",
        "param": "fine_tune_id",
        "code": "fine_tune_not_found",
    }


def test_events_are_listed_newest_first_in_pages(service: Service) -> None:
    job, lease = service.start_job()
    service.train(lease, 1, 2)
    page = service.http.get(f"/v1/fine_tuning/jobs/{job.id}/events", params={"limit": 2}).json()

    assert_shape(page, {"object": str, "data": [EVENT], "has_more": bool})
    assert page["has_more"]
    assert [event["type"] for event in page["data"]] == ["metrics", "metrics"]
    assert page["data"][0]["data"] == {"step": 2, "total_steps": 9, "train_loss": 0.5, "valid_loss": None}
    one_by_one = [event.message for event in service.client.fine_tuning.jobs.list_events(job.id, limit=1)]
    assert one_by_one[::-1] == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {job.training_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Step 1/9: training loss=0.50",
        "Step 2/9: training loss=0.50",
    ]


def test_an_event_that_is_no_metric_has_empty_data(service: Service) -> None:
    event = service.http.get(f"/v1/fine_tuning/jobs/{service.create_job()}/events").json()["data"][0]

    assert (event["type"], event["data"], event["object"]) == ("message", {}, "fine_tuning.job.event")


def test_checkpoints_are_listed_highest_step_first_in_pages(service: Service) -> None:
    job, lease = service.start_job()
    empty = service.http.get(f"/v1/fine_tuning/jobs/{job.id}/checkpoints").json()
    for step in (1, 2, 3):
        service.train(lease, step)
        service.save(lease, step)
    page = service.http.get(f"/v1/fine_tuning/jobs/{job.id}/checkpoints", params={"limit": 2}).json()

    assert empty == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
    assert_shape(page, {"object": str, "data": [CHECKPOINT], "has_more": bool, "first_id": str, "last_id": str})
    assert [checkpoint["step_number"] for checkpoint in page["data"]] == [3, 2]
    assert (page["has_more"], page["last_id"]) == (True, page["data"][1]["id"])
    newest = page["data"][0]
    assert newest["fine_tuned_model_checkpoint"] == f"{job.model_name}:ckpt-step-3"
    assert newest["fine_tuning_job_id"] == job.id
    assert json.dumps(newest["metrics"], sort_keys=True) == '{"step": 3, "train_loss": 0.5}'
    listed = service.client.fine_tuning.jobs.checkpoints.list(job.id, limit=1)
    assert [checkpoint.step_number for checkpoint in listed] == [3, 2, 1]


def test_checkpoints_can_be_deleted_while_they_are_listed(service: Service) -> None:
    job, lease = service.start_job()
    for step in (1, 2, 3):
        service.save(lease, step)
    for checkpoint in service.client.fine_tuning.jobs.checkpoints.list(job.id, limit=1):
        service.client.models.delete(checkpoint.fine_tuned_model_checkpoint)

    assert list(service.client.fine_tuning.jobs.checkpoints.list(job.id)) == []
