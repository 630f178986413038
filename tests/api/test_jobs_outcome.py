from __future__ import annotations

import json
import re
from typing import Any

import pytest

from caesura.jobs import JobError
from tests.api.job_shapes import JOB
from tests.api.service import Service, assert_shape, rows


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


def test_a_failed_job_names_a_report_that_programs_read(service: Service) -> None:
    job_id = service.create_job(training_file=service.upload(rows(10) + b"{not json\n" + row(USER)))
    service.validate()

    job = service.client.fine_tuning.jobs.retrieve(job_id)
    report_id = job.to_dict()["validation_report"]
    assert isinstance(report_id, str)
    report = json.loads(service.client.files.content(report_id).read())
    assert [problem["line"] for problem in report["files"][0]["problems"]] == [11, 12]
    assert service.client.files.retrieve(report_id).filename == "validation_report.json"
    assert job.result_files == []


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
