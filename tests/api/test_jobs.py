from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from caesura.api import jobs
from caesura.jobs import JobError, Reason
from caesura.settings import OPENAI_MODELS
from tests.api.service import PATIENCE_S, Service, assert_shape, error_of, rows, wait_until

NoneType = type(None)
HYPERPARAMETERS = {
    "n_epochs": int | str,
    "batch_size": int | str,
    "learning_rate_multiplier": float | str,
}
JOB = {
    "id": str,
    "object": str,
    "created_at": int,
    "finished_at": int | NoneType,
    "estimated_finish": int | NoneType,
    "model": str,
    "fine_tuned_model": str | NoneType,
    "organization_id": str,
    "status": str,
    "training_file": str,
    "validation_file": str | NoneType,
    "result_files": list,
    "trained_tokens": int | NoneType,
    "error": dict | NoneType,
    "hyperparameters": HYPERPARAMETERS,
    "method": {"type": str, "supervised": {"hyperparameters": HYPERPARAMETERS}},
    "seed": int,
    "integrations": list,
    "metadata": dict | NoneType,
    "user_provided_suffix": str | NoneType,
    "usage_metrics": NoneType,
    "shared_with_openai": bool,
}
EVENT = {"id": str, "object": str, "created_at": int, "level": str, "message": str, "type": str, "data": dict}
CHECKPOINT = {
    "id": str,
    "object": str,
    "created_at": int,
    "fine_tuned_model_checkpoint": str,
    "step_number": int,
    "fine_tuning_job_id": str,
    "metrics": dict,
}
AUTO = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}


def post(service: Service, body: dict[str, Any]) -> Any:
    return service.http.post("/v1/fine_tuning/jobs", json=body)


@pytest.fixture
def good(service: Service) -> dict[str, Any]:
    """The smallest body that makes a job."""
    return {"model": "caesura-tiny", "training_file": service.upload()}


@pytest.fixture
def idle_body(idle_service: Service) -> dict[str, Any]:
    """The same for the service that is shared."""
    (file,) = idle_service.client.files.list().data
    return {"model": "caesura-tiny", "training_file": file.id}


def test_a_new_job_is_told_in_openais_form(service: Service, good: dict[str, Any]) -> None:
    answer = post(service, good)
    job = answer.json()

    assert answer.status_code == 200
    assert_shape(job, JOB)
    assert re.fullmatch(r"ftjob-[A-Za-z0-9]{24}", job["id"])
    assert 0 <= job["seed"] < 2**31
    assert abs(job["created_at"] - time.time()) < 60
    del job["id"], job["seed"], job["created_at"]
    assert job == {
        "object": "fine_tuning.job",
        "finished_at": None,
        "estimated_finish": None,
        "model": "caesura-tiny",
        "fine_tuned_model": None,
        "organization_id": "org-caesura",
        "status": "validating_files",
        "training_file": good["training_file"],
        "validation_file": None,
        "result_files": [],
        "trained_tokens": None,
        "error": None,
        "hyperparameters": AUTO,
        "method": {"type": "supervised", "supervised": {"hyperparameters": AUTO}},
        "integrations": [],
        "metadata": None,
        "user_provided_suffix": None,
        "usage_metrics": None,
        "shared_with_openai": False,
    }


def test_what_was_asked_for_is_told_back(service: Service, good: dict[str, Any]) -> None:
    hyperparameters = {"n_epochs": 50, "batch_size": 256, "learning_rate_multiplier": 0.1}
    validation_file = service.upload()
    job = service.client.fine_tuning.jobs.create(
        **good,
        validation_file=validation_file,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},  # type: ignore[typeddict-item]
        suffix="my model/1: ß",
        seed=2**31 - 1,
        metadata={"team": "blue"},
        integrations=[],
    )

    told = json.loads(service.client.fine_tuning.jobs.retrieve(job.id).to_json())
    assert told["validation_file"] == validation_file
    assert told["hyperparameters"] == hyperparameters
    assert told["method"] == {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    assert (told["user_provided_suffix"], told["seed"], told["metadata"]) == (
        "my model/1: ß",
        2**31 - 1,
        {"team": "blue"},
    )


def test_null_means_absent_everywhere(service: Service, good: dict[str, Any]) -> None:
    nothing = dict.fromkeys(
        ("validation_file", "suffix", "seed", "metadata", "integrations", "hyperparameters", "method", "trainingType")
    )
    methods = [
        None,
        {"type": "supervised", "supervised": None, "dpo": None},
        {"type": "supervised", "supervised": {"hyperparameters": None}},
        {"type": "supervised", "supervised": {"hyperparameters": dict.fromkeys(AUTO)}},
    ]
    for method in methods:
        answer = post(service, {**good, **nothing, "method": method})

        assert answer.status_code == 200, answer.text
        assert answer.json()["hyperparameters"] == AUTO


def test_hyperparameters_at_their_older_place_are_taken(service: Service, good: dict[str, Any]) -> None:
    job = post(service, {**good, "hyperparameters": {"n_epochs": 2}}).json()

    assert job["hyperparameters"] == {**AUTO, "n_epochs": 2}
    assert job["method"]["supervised"]["hyperparameters"] == {**AUTO, "n_epochs": 2}


def test_the_method_wins_over_the_older_place(service: Service, good: dict[str, Any]) -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}

    job = post(service, {**good, "hyperparameters": {"n_epochs": 2}, "method": method}).json()
    assert job["hyperparameters"]["n_epochs"] == 3


def test_what_other_services_clients_send_is_ignored(service: Service, good: dict[str, Any]) -> None:
    answer = post(service, {**good, "trainingType": "Standard", "eval_id": "x", "user_provided_suffix": "y"})

    assert answer.status_code == 200
    assert answer.json()["user_provided_suffix"] is None


def test_auto_is_shown_until_the_first_attempt_resolves_it(service: Service) -> None:
    job, lease = service.start_job()
    assert service.http.get(f"/v1/fine_tuning/jobs/{job.id}").json()["hyperparameters"] == AUTO
    resolved = {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.0}
    service.store.attempts.set_plan(lease, {**resolved, "threads": 2})

    told = service.http.get(f"/v1/fine_tuning/jobs/{job.id}").json()
    assert told["hyperparameters"] == resolved
    assert told["method"]["supervised"]["hyperparameters"] == resolved


@pytest.mark.parametrize("model", OPENAI_MODELS)
def test_openais_names_mean_the_embedded_base_and_the_job_says_so(service: Service, model: str) -> None:
    job = service.client.fine_tuning.jobs.create(model=model, training_file=service.upload())

    assert job.model == "caesura-tiny"
    events = service.client.fine_tuning.jobs.list_events(job.id).data
    assert [(event.level, event.message) for event in events if event.level != "info"] == [
        ("warn", f"Model '{model}' is an alias in this server's settings and means 'caesura-tiny'")
    ]


def test_a_base_by_its_own_name_needs_no_warning(service: Service) -> None:
    events = service.client.fine_tuning.jobs.list_events(service.create_job()).data

    assert {event.level for event in events} == {"info"}


HYPER = "method.supervised.hyperparameters"


def method(**hyperparameters: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}}


@pytest.mark.parametrize(
    ("extra", "param", "code", "message"),
    [
        ({"model": None}, "model", "missing_required_parameter", "Missing required parameter: 'model'."),
        ({"training_file": None}, "training_file", "missing_required_parameter", "Missing required parameter: 'tra"),
        ({"model": 5}, "model", "invalid_type", "Invalid type for 'model': expected a string, but got an integer"),
        (
            {"model": "gpt-2"},
            "model",
            "model_not_available",
            "Model gpt-2 is not available for fine-tuning or does not exist. This server's bases are: 'caesura-tiny'.",
        ),
        ({"training_file": "file-x"}, "training_file", None, "invalid training_file: file-x"),
        ({"validation_file": "file-x"}, "validation_file", None, "invalid validation_file: file-x"),
        ({"epochs": 3}, "epochs", "unknown_parameter", "Unknown parameter: 'epochs'."),
        (method(epochs=3), f"{HYPER}.epochs", "unknown_parameter", f"Unknown parameter: '{HYPER}.epochs'."),
        (
            method(n_epochs=0),
            f"{HYPER}.n_epochs",
            "integer_below_min_value",
            f"Invalid '{HYPER}.n_epochs': integer below minimum value. Expected a value >= 1, but got 0 instead.",
        ),
        (
            method(n_epochs=51),
            f"{HYPER}.n_epochs",
            "integer_above_max_value",
            f"Invalid '{HYPER}.n_epochs': integer above maximum value. Expected a value <= 50, but got 51 instead.",
        ),
        (method(batch_size=257), f"{HYPER}.batch_size", "integer_above_max_value", "Invalid '"),
        (method(batch_size=-1), f"{HYPER}.batch_size", "integer_below_min_value", "Invalid '"),
        (
            method(n_epochs="3"),
            f"{HYPER}.n_epochs",
            "invalid_type",
            f"Invalid type for '{HYPER}.n_epochs': expected an integer, but got a string instead.",
        ),
        (
            method(n_epochs=2.5),
            f"{HYPER}.n_epochs",
            "invalid_type",
            f"Invalid type for '{HYPER}.n_epochs': expected an",
        ),
        (
            method(n_epochs=True),
            f"{HYPER}.n_epochs",
            "invalid_type",
            f"Invalid type for '{HYPER}.n_epochs': expected an integer, but got a boolean instead.",
        ),
        (
            method(learning_rate_multiplier=0),
            f"{HYPER}.learning_rate_multiplier",
            "decimal_below_min_value",
            f"Invalid '{HYPER}.learning_rate_multiplier': decimal below minimum value. "
            "Expected a value > 0, but got 0 instead.",
        ),
        (method(learning_rate_multiplier=[]), f"{HYPER}.learning_rate_multiplier", "invalid_type", "Invalid type"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "integer_below_min_value", "Invalid 'hyp"),
        (
            {"method": {"type": "dpo", "dpo": {}}},
            "method.type",
            "invalid_value",
            "Invalid value: 'dpo'. Supported values are: 'supervised' and 'reinforcement'.",
        ),
        ({"method": {}}, "method.type", "missing_required_parameter", "Missing required parameter: 'method.type'."),
        ({"method": "supervised"}, "method", "invalid_type", "Invalid type for 'method': expected an object, but got"),
        (
            {"method": {"type": 1}},
            "method.type",
            "invalid_type",
            "Invalid type for 'method.type': expected one of 'supervised' and 'reinforcement', "
            "but got an integer instead.",
        ),
        (
            {"method": {"type": "supervised", "dpo": {}}},
            "method.dpo",
            "unknown_parameter",
            "Unknown parameter: 'method.dpo'.",
        ),
        (
            {"suffix": "x" * 65},
            "suffix",
            "string_above_max_length",
            "Invalid 'suffix': string too long. Expected a string with maximum length 64, "
            "but got a string with length 65 instead.",
        ),
        ({"suffix": ""}, "suffix", "string_below_min_length", "Invalid 'suffix': string too short. Expected a string"),
        ({"suffix": "a\nb"}, "suffix", "invalid_value", "Invalid value for 'suffix': "),
        ({"seed": -1}, "seed", "integer_below_min_value", "Invalid 'seed': integer below minimum value."),
        ({"seed": 2**31}, "seed", "integer_above_max_value", "Invalid 'seed': integer above maximum value."),
        ({"seed": "7"}, "seed", "invalid_type", "Invalid type for 'seed': expected an integer, but got a string ins"),
        ({"seed": 7.0}, "seed", "invalid_type", "Invalid type for 'seed': expected an integer, but got a decimal ins"),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]},
            "integrations",
            "invalid_value",
            "Invalid value for 'integrations': this server does not offer it.",
        ),
        (
            {"metadata": []},
            "metadata",
            "invalid_type",
            "Invalid type for 'metadata': expected an object, but got an ar",
        ),
        (
            {"metadata": {str(number): "v" for number in range(17)}},
            "metadata",
            "object_above_max_properties",
            "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, "
            "but got an object with 17 properties instead.",
        ),
        (
            {"metadata": {"k": 1}},
            "metadata.k",
            "invalid_type",
            "Invalid type for 'metadata.k': expected a string, but got an integer instead.",
        ),
        ({"metadata": {"k": None}}, "metadata.k", "invalid_type", "Invalid type for 'metadata.k': expected a string"),
        ({"metadata": {"[key]": 1}}, "metadata.[key]", "invalid_type", "Invalid type for 'metadata.[key]': expected a"),
        ({"metadata": {"number": 1}}, "metadata.number", "invalid_type", "Invalid type for 'metadata.number': expect"),
        (
            {"metadata": {"k" * 65: "v"}},
            f"metadata.{'k' * 65}",
            "property_name_above_max_length",
            f"Invalid 'metadata.{'k' * 65}': property name too long. Expected a property name with maximum length 64, "
            "but got a property name with length 65 instead.",
        ),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "string_above_max_length", "Invalid 'metadata.k': string too"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_faulty_body_is_a_400_that_names_the_parameter_and_makes_no_job(
    idle_service: Service, idle_body: dict[str, Any], extra: dict[str, Any], param: str, code: str | None, message: str
) -> None:
    answer = post(idle_service, {**idle_body, **extra})

    assert answer.status_code == 400
    error = error_of(answer)
    assert error["message"].startswith(message), error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert idle_service.http.get("/v1/fine_tuning/jobs").json()["data"] == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_json_does_not_know_is_no_number(idle_service: Service, idle_body: dict[str, Any], number: str) -> None:
    body = json.dumps({**idle_body, "hyperparameters": {"learning_rate_multiplier": 12345}}).replace("12345", number)
    answer = idle_service.http.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert error_of(answer)["param"] == "hyperparameters.learning_rate_multiplier"


def test_metadata_of_the_largest_size_is_kept(service: Service) -> None:
    metadata = {f"{number:02}" + "k" * 62: "v" * 512 for number in range(16)}

    assert service.client.fine_tuning.jobs.retrieve(service.create_job(metadata=metadata)).metadata == metadata


def test_a_file_of_another_purpose_is_refused_by_name(service: Service) -> None:
    file_id = service.upload(purpose="batch")
    with pytest.raises(openai.BadRequestError) as caught:
        service.create_job(training_file=file_id)

    assert caught.value.body == {
        "message": f"File '{file_id}' has the purpose 'batch'; "
        "a job's training_file must have the purpose 'fine-tune'.",
        "type": "invalid_request_error",
        "param": "training_file",
        "code": "invalid_file_purpose",
    }


def row(*messages: Any) -> bytes:
    return json.dumps({"messages": list(messages)}).encode() + b"\n"


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (
            rows(9),
            "invalid_n_examples",
            "Training file has 9 example(s), but must have at least 10 examples",
        ),
        (rows(10) + b"{not json\n", "invalid_training_file", "Example 11"),
        (
            rows(10) + row(USER, {"content": "Hello"}),
            "invalid_training_file",
            "Example 11, message 2 Discriminator 'role'",
        ),
        (rows(3) + row(USER, {"role": "robot", "content": "Hello"}) + rows(10), "invalid_training_file", "Example 4"),
        (rows(10) + row(USER), "invalid_training_file", "Example 11"),
    ],
    ids=["nine rows", "unparsable", "missing role", "unknown role", "no assistant message"],
)
def test_faulty_data_fails_the_job_with_a_message_that_names_the_line(
    service: Service, data: bytes, code: str, message: str
) -> None:
    job_id = service.create_job(training_file=service.upload(data))
    service.validate()

    job = service.client.fine_tuning.jobs.retrieve(job_id)
    assert job.status == "failed"
    assert job.finished_at is not None
    assert job.error is not None
    assert (job.error.code, job.error.param) == (code, "training_file")
    assert job.error.message is not None
    assert message in job.error.message
    newest = service.client.fine_tuning.jobs.list_events(job_id, limit=1).data[0]
    assert (newest.level, newest.message) == ("error", job.error.message)


def test_a_faulty_validation_file_fails_the_job_under_its_own_name(service: Service) -> None:
    job_id = service.create_job(validation_file=service.upload(row(USER)))
    service.validate()

    error = service.client.fine_tuning.jobs.retrieve(job_id).error
    assert error is not None
    assert (error.code, error.param) == ("invalid_validation_file", "validation_file")


def test_good_files_move_the_job_to_the_queue_and_to_a_worker(service: Service) -> None:
    job_id = service.create_job()
    service.validate()

    assert service.client.fine_tuning.jobs.retrieve(job_id).status == "queued"
    assert service.executor.started == [job_id]
    assert service.messages(job_id)[2] == "Files validated, moving job to queued state"


def test_a_finished_job_tells_its_model_and_results(service: Service) -> None:
    job, lease = service.start_job(suffix="mine")
    service.train(lease, 1)
    running = service.client.fine_tuning.jobs.retrieve(job.id)
    service.finish(lease, 1)
    ended = service.client.fine_tuning.jobs.retrieve(job.id)

    assert (running.status, running.fine_tuned_model, running.trained_tokens) == ("running", None, None)
    assert isinstance(running.estimated_finish, int)
    assert (ended.status, ended.trained_tokens, len(ended.result_files), ended.error) == ("succeeded", 1234, 1, None)
    assert re.fullmatch(r"ft:caesura-tiny:caesura:mine:[A-Za-z0-9]{8}", ended.fine_tuned_model or "")
    assert ended.estimated_finish is None
    assert ended.finished_at is not None
    assert_shape(service.http.get(f"/v1/fine_tuning/jobs/{job.id}").json(), JOB)


def test_a_failed_jobs_error_has_all_its_keys(service: Service) -> None:
    job, lease = service.start_job()
    service.store.attempts.fail(lease, JobError("server_error", "The job failed."))

    told = service.http.get(f"/v1/fine_tuning/jobs/{job.id}").json()
    assert told["error"] == {"code": "server_error", "message": "The job failed.", "param": None}
    assert told["result_files"] == []


def test_jobs_are_listed_newest_first_in_pages(service: Service, good: dict[str, Any]) -> None:
    empty = service.http.get("/v1/fine_tuning/jobs").json()
    ids = [service.create_job(**good) for _ in range(3)]
    page = service.http.get("/v1/fine_tuning/jobs", params={"limit": 2}).json()

    assert empty == {"object": "list", "data": [], "has_more": False}
    assert_shape(page, {"object": str, "data": [JOB], "has_more": bool})
    assert ([job["id"] for job in page["data"]], page["has_more"]) == (ids[:0:-1], True)
    assert [job.id for job in service.client.fine_tuning.jobs.list(limit=1)] == ids[::-1]


def test_a_limit_beyond_the_largest_is_cut_to_it(
    service: Service, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_JOBS_PAGE", 2)
    monkeypatch.setattr(jobs, "MAX_EVENTS_PAGE", 1)
    job_ids = [service.create_job(**good) for _ in range(3)]

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
    service: Service, good: dict[str, Any], query: dict[str, str], expected: list[str]
) -> None:
    service.create_job(**good, suffix="blue", metadata={"team": "blue"})
    service.create_job(**good, suffix="without")
    service.create_job(**good, suffix="both", metadata={"team": "blue", "run": "1"})
    service.create_job(**good, suffix="odd", metadata={"two words.": "ü & +"})

    listed = service.http.get("/v1/fine_tuning/jobs", params=query).json()["data"]
    assert [job["user_provided_suffix"] for job in listed] == expected


def test_the_sdks_metadata_filter_works_across_pages(service: Service, good: dict[str, Any]) -> None:
    ids = [service.create_job(**good, metadata={"team": team}) for team in ("blue", "red", "blue")]

    listed = service.client.fine_tuning.jobs.list(metadata={"team": "blue"}, limit=1)
    assert [job.id for job in listed] == [ids[2], ids[0]]


@pytest.mark.parametrize("key", ["a'b", "", "a.b[0]", "$", "%"])
def test_a_metadata_key_may_hold_any_characters(service: Service, good: dict[str, Any], key: str) -> None:
    job_id = service.create_job(**good, metadata={key: "v"})
    service.create_job(**good, metadata={"other": "v"})

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


def test_an_event_of_another_job_is_no_cursor(service: Service, good: dict[str, Any]) -> None:
    one, other = service.create_job(**good), service.create_job(**good)
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


def test_the_moves_take_a_body_of_no_bytes_that_calls_itself_json(service: Service, good: dict[str, Any]) -> None:
    job_id = service.create_job(**good)
    headers = {"content-type": "application/json", "content-length": "0"}
    for move, status in (("pause", "paused"), ("resume", "validating_files"), ("cancel", "cancelled")):
        answer = service.http.post(f"/v1/fine_tuning/jobs/{job_id}/{move}", headers=headers)

        assert (answer.status_code, answer.json()["status"]) == (200, status)


@pytest.mark.parametrize("content", [b"{}", b'{"any": "object"}', b"not json"])
def test_the_moves_never_read_their_body(service: Service, content: bytes) -> None:
    job_id = service.create_job()
    headers = {"content-type": "application/json"}
    answer = service.http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel", content=content, headers=headers)

    assert answer.json()["status"] == "cancelled"


def test_a_waiting_job_is_paused_at_once_and_resumed_to_where_it_was(service: Service) -> None:
    moves = service.client.fine_tuning.jobs
    job_id = service.create_job()
    service.validate()

    assert moves.pause(job_id).status == "paused"
    assert moves.pause(job_id).status == "paused"
    assert moves.resume(job_id).status == "queued"
    assert service.messages(job_id)[-2:] == ["Fine-tuning job paused", "Fine-tuning job resumed"]


def test_a_pause_waits_for_the_worker_and_answers_paused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PAUSE_WAIT_S", PATIENCE_S)
    job, lease = service.start_job()
    service.train(lease, 1)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.client.fine_tuning.jobs.pause, job.id)
        wait_until(lambda: service.store.attempts.status(lease) == "pausing", "the pause was asked for")
        assert service.store.attempts.pause(lease, service.state(1))
        paused = asked.result()

    assert (paused.status, paused.fine_tuned_model) == ("paused", None)
    (checkpoint,) = service.client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoint.step_number == 1


def test_a_pause_that_takes_long_answers_pausing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PAUSE_WAIT_S", 0.1)
    job, lease = service.start_job()

    assert service.client.fine_tuning.jobs.pause(job.id).status == "pausing"
    assert service.client.fine_tuning.jobs.pause(job.id).status == "pausing"
    assert service.client.fine_tuning.jobs.resume(job.id).status == "running"
    assert service.store.attempts.status(lease) == "running"


def test_a_pause_that_waits_hinders_nobody(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are threads."""
    monkeypatch.setattr(jobs, "PAUSE_WAIT_S", PATIENCE_S)
    job, lease = service.start_job()
    with ThreadPoolExecutor(50) as pool:
        pauses = [pool.submit(service.client.fine_tuning.jobs.pause, job.id) for _ in range(50)]
        wait_until(lambda: service.store.attempts.status(lease) == "pausing", "the pause was asked for")
        assert service.client.fine_tuning.jobs.retrieve(job.id).status == "pausing"
        assert not any(pause.done() for pause in pauses)
        service.store.attempts.pause(lease, service.state(1))

    assert {pause.result().status for pause in pauses} == {"paused"}


def test_a_cancelled_job_keeps_its_checkpoints(service: Service) -> None:
    job, lease = service.start_job()
    service.save(lease, 1, Reason.EPOCH)
    cancelled = service.client.fine_tuning.jobs.cancel(job.id)

    assert (cancelled.status, cancelled.fine_tuned_model) == ("cancelled", None)
    assert cancelled.finished_at is not None
    assert len(service.client.fine_tuning.jobs.checkpoints.list(job.id).data) == 1
    newest = service.client.fine_tuning.jobs.list_events(job.id).data[0]
    assert (newest.level, newest.message) == ("warn", "Fine tuning process stopping due to job cancellation")


@pytest.mark.parametrize("move", ["pause", "resume", "cancel"])
def test_a_move_of_a_job_that_has_ended_is_a_400_that_no_client_retries(service: Service, move: str) -> None:
    job_id = service.create_job()
    service.client.fine_tuning.jobs.cancel(job_id)
    answer = service.http.post(f"/v1/fine_tuning/jobs/{job_id}/{move}")

    assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
    error = error_of(answer)
    assert (error["code"], error["param"], error["type"]) == ("invalid_job_state", None, "invalid_request_error")
    assert job_id in error["message"]
    assert "'cancelled'" in error["message"]


def test_a_running_job_cannot_be_resumed(service: Service) -> None:
    job, _ = service.start_job()
    with pytest.raises(openai.BadRequestError, match="its status is 'running', and it must be paused") as caught:
        service.client.fine_tuning.jobs.resume(job.id)

    assert caught.value.code == "invalid_job_state"
