from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from caesura.api import jobs
from caesura.jobs import Reason
from tests.api.service import PATIENCE_S, Service, error_of, wait_until


def test_the_moves_take_a_body_of_no_bytes_that_calls_itself_json(service: Service, good_body: dict[str, Any]) -> None:
    job_id = service.create_job(**good_body)
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
