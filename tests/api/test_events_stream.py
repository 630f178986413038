"""A job's events as they come, by server-sent events: what a page or a script follows a job by."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from caesura.api import events
from caesura.tenancy import Role
from tests.api.job_shapes import EVENT
from tests.api.service import HttpServer, Service, assert_shape, error_of, wait_until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_S", 0.01)


def path_of(job_id: str) -> str:
    return f"/v1/fine_tuning/jobs/{job_id}/events?stream=true"


@contextmanager
def following(service: Service, job_id: str, behind: str | None = None) -> Generator[Iterator[str]]:
    """The blocks of the stream, one by one."""
    headers = {} if behind is None else {"last-event-id": behind}
    with service.http.stream("GET", path_of(job_id), headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield blocks(answer)


def blocks(answer: httpx.Response) -> Iterator[str]:
    lines: list[str] = []
    for line in answer.iter_lines():
        if line:
            lines.append(line)
        else:
            yield "\n".join(lines)
            lines = []


def read(block: str) -> dict[str, Any]:
    """The event of a block, whose id is the event's."""
    id_line, data = block.split("\n")
    event = json.loads(data.removeprefix("data: "))
    assert id_line == f"id: {event['id']}"
    return event


def ended_job(service: Service) -> str:
    job, lease = service.start_job()
    service.train(lease, 1, 2)
    service.finish(lease, 2)
    return job.id


def test_all_that_an_ended_job_has_told_comes_in_order_and_then_the_end(service: Service) -> None:
    job_id = ended_job(service)
    with following(service, job_id) as stream:
        *told, end = stream

    assert end == "data: [DONE]"
    assert_shape({"data": [read(block) for block in told]}, {"data": [EVENT]})
    assert [read(block)["message"] for block in told] == service.messages(job_id)


def test_a_page_of_events_is_no_end(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_PAGE", 2)
    job_id = ended_job(service)
    with following(service, job_id) as stream:
        *told, end = stream

    assert [read(block)["message"] for block in told] == service.messages(job_id)
    assert end == "data: [DONE]"


def test_what_a_job_tells_comes_as_it_is_told_and_silence_is_said_once(service: Service) -> None:
    job, lease = service.start_job()
    with following(service, job.id) as stream:
        told = [next(stream) for _ in range(5)]
        assert told[-1] == ": up to date"
        assert read(told[-2])["message"] == "Fine-tuning job started"
        service.train(lease, 1)
        assert read(next(stream))["data"]["step"] == 1
        assert next(stream) == ": up to date"
        service.client.fine_tuning.jobs.cancel(job.id)
        assert read(next(stream))["message"] == "Fine tuning process stopping due to job cancellation"
        assert list(stream) == ["data: [DONE]"]


def test_one_that_comes_back_is_told_what_came_behind_the_event_that_it_names(service: Service) -> None:
    job_id = ended_job(service)
    newest = service.client.fine_tuning.jobs.list_events(job_id, limit=3).data
    with following(service, job_id, behind=newest[2].id) as stream:
        *told, end = stream
    with following(service, job_id, behind=newest[0].id) as stream:
        assert list(stream) == ["data: [DONE]"]

    assert [read(block)["id"] for block in told] == [newest[1].id, newest[0].id]
    assert end == "data: [DONE]"


def test_silence_is_broken_now_and_then(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SILENCE_S", 0.02)
    with following(service, service.create_job()) as stream:
        told = [next(stream) for _ in range(5)]

    assert told[2:] == [": up to date"] * 3


def test_a_stream_ends_after_a_while_so_that_its_key_is_looked_at_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "STREAM_S", 0.05)
    with following(service, service.create_job()) as stream:
        told = list(stream)

    assert told[-1] == ": up to date"


def test_a_stream_ends_when_the_server_stops(service: Service) -> None:
    with following(service, service.create_job()) as stream:
        told = [next(stream) for _ in range(3)]
        service.server.is_stopping.set()
        assert list(stream) == []

    assert told[-1] == ": up to date"


def test_nothing_is_asked_of_the_database_for_a_client_that_has_left(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(events.time, "monotonic", lambda: asked.append(0) or real())
    real = time.perf_counter
    with following(service, service.create_job()) as stream:
        next(stream)
        wait_until(lambda: len(asked) > 8, "the stream asks for more")

    def is_silent() -> bool:
        before = len(asked)
        time.sleep(0.1)
        return len(asked) == before

    wait_until(is_silent, "the stream asks no more")


@pytest.mark.parametrize(
    ("job", "headers", "status", "param"),
    [
        ("ftjob-none", {}, 404, "fine_tune_id"),
        (None, {"last-event-id": "ftevent-none"}, 400, "last-event-id"),
    ],
)
def test_a_stream_that_cannot_begin_has_the_status_of_its_fault(
    service: Service, job: str | None, headers: dict[str, str], status: int, param: str
) -> None:
    answer = service.http.get(path_of(job or service.create_job()), headers=headers)

    assert answer.status_code == status
    assert error_of(answer)["param"] == param


def test_another_project_follows_nothing(service: Service, http_server: HttpServer) -> None:
    _, key = service.store.keys.create("theirs", organization="caesura", project="theirs", role=Role.OWNER)
    answer = httpx.get(http_server.origin + path_of(service.create_job()), headers={"authorization": f"Bearer {key}"})

    assert answer.status_code == 404
