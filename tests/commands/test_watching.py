"""`caesura jobs watch`."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from starlette.types import ASGIApp, Receive, Scope, Send

from caesura.commands import following
from caesura.commands.course import Course, sparkline
from caesura.commands.following import read_events
from caesura.jobs import Job, JobError, Lease
from tests.api.service import KEY, Service, wait_until
from tests.commands.conftest import Command

Ended = Callable[[Job, Lease], object]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "RETRY_S", (0.01, 0.05))


@pytest.fixture
def ended(service: Service) -> dict[str, str]:
    """End → a job that has come to it, after three steps."""
    jobs: dict[str, str] = {}
    ends: dict[str, Ended] = {
        "succeeded": lambda _, lease: service.finish(lease, 3),
        "failed": lambda _, lease: service.store.attempts.fail(lease, JobError("server_error", "The disk\nis gone.")),
        "cancelled": lambda job, _: service.store.jobs.cancel(job.id),
    }
    for name, end in ends.items():
        job, lease = service.start_job()
        service.train(lease, 1, 2, 3)
        end(job, lease)
        jobs[name] = job.id
    return jobs


def test_every_end_has_its_exit_code_and_its_words(caesura: Command, service: Service, ended: dict[str, str]) -> None:
    done = caesura("jobs", "watch", ended["succeeded"])
    model = service.client.fine_tuning.jobs.retrieve(ended["succeeded"]).fine_tuned_model
    assert (done.code, done.err) == (0, "")
    assert "info  Step 3/9: training loss=0.50\n" in done.out
    assert done.out.endswith(f"{ended['succeeded']} has succeeded. Ask it with: caesura chat {model}\n")

    done = caesura("jobs", "watch", ended["failed"])
    assert (done.code, done.err) == (1, f"error: {ended['failed']} has failed: The disk is gone.\n")
    done = caesura("jobs", "watch", ended["cancelled"])
    assert (done.code, done.err) == (4, f"error: {ended['cancelled']} was cancelled.\n")


@pytest.mark.parametrize(("end", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 4)])
def test_json_lines_are_the_events_and_then_the_job(
    caesura: Command, service: Service, ended: dict[str, str], end: str, code: int
) -> None:
    done = caesura("jobs", "watch", ended[end], "--json")

    *events, job = done.lines
    assert (done.code, done.err) == (code, "")
    assert [event["message"] for event in events] == service.messages(ended[end])
    assert (job["id"], job["status"]) == (ended[end], end)


def test_a_job_is_made_and_watched_by_one_command(caesura: Command, service: Service, data: str) -> None:
    def cancel_what_comes() -> None:
        wait_until(lambda: service.client.fine_tuning.jobs.list().data != [], "the job is made")
        service.store.jobs.cancel(service.client.fine_tuning.jobs.list().data[0].id)

    cancelling = threading.Thread(target=cancel_what_comes)
    cancelling.start()
    done = caesura("jobs", "create", data, "--model", "caesura-tiny", "--watch", "--json")
    cancelling.join()

    made, *events, job = done.lines
    assert done.code == 4
    assert made["id"] == job["id"]
    assert events[-1]["message"] == "Fine tuning process stopping due to job cancellation"


class Flaky:
    """In front of the application: what it does with the next streams of events, and then nothing."""

    def __init__(self, app: ASGIApp, *faults: str) -> None:
        self._app = app
        self.faults = list(faults)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self.faults.pop(0) if scope["path"].endswith("/events") and self.faults else ""
        if fault == "refuses":
            await send({"type": "http.response.start", "status": 502, "headers": []})
            await send({"type": "http.response.body", "body": b"<html>Bad gateway</html>"})
        elif fault:
            num_sent = 0

            async def send_some(message: Any) -> None:
                nonlocal num_sent
                num_sent += len(message.get("body", b""))
                if fault == "tells a fault" and num_sent:
                    message = {**message, "body": b'data: {"error": {"message": "Odd."}}\n\n', "more_body": False}
                await send({**message, "body": message["body"][:900]} if fault == "breaks" and num_sent else message)
                if num_sent:
                    raise ConnectionError("the server is killed")

            await self._app(scope, receive, send_some)
        else:
            await self._app(scope, receive, send)


def test_every_event_is_told_once_however_often_the_connection_breaks(
    caesura: Command, service: Service, ended: dict[str, str]
) -> None:
    flaky = Flaky(service.app, "breaks", "refuses", "tells a fault", "breaks")
    service.http_server.app = flaky
    done = caesura("jobs", "watch", ended["succeeded"], "--json")

    *events, job = done.lines
    assert flaky.faults == []
    assert [event["message"] for event in events] == service.messages(ended["succeeded"])
    assert job["status"] == "succeeded"


def test_a_server_that_does_not_come_back_is_given_up(
    caesura: Command, service: Service, ended: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PATIENCE_S", 0.1)
    told = service.messages(ended["succeeded"])
    service.http_server.app = Flaky(service.app, "breaks", *["refuses"] * 1000)
    done = caesura("jobs", "watch", ended["succeeded"], "--json")

    assert done.code == 3
    assert done.err.startswith("error: What answers at ")
    assert 0 < len(done.lines) < len(told)


def test_ctrl_c_leaves_the_job_as_it_is(service: Service) -> None:
    job, lease = service.start_job()
    service.train(lease, 1)
    environment = {**os.environ, "OPENAI_BASE_URL": f"{service.http_server.origin}/v1", "OPENAI_API_KEY": KEY}
    watching = subprocess.Popen(
        [sys.executable, "-m", "caesura.commands.main", "jobs", "watch", job.id],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        text=True,
    )
    assert watching.stdout is not None
    while "Step 1/9" not in watching.stdout.readline():
        pass
    watching.send_signal(signal.SIGINT)
    _, told = watching.communicate(timeout=60)

    assert watching.returncode == 130
    assert told == f"Left. The job goes on; watch it again with: caesura jobs watch {job.id}\n"
    assert service.store.jobs.get(job.id).status == "running"


def step(number: int, **data: Any) -> dict[str, Any]:
    return {"type": "metrics", "level": "info", "message": "m", "data": {"step": number, "total_steps": 8, **data}}


def drawn(course: Course) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(course.draw())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def job(**values: Any) -> dict[str, Any]:
    return {
        "id": "ftjob-1",
        "model": "base",
        "method": {"type": "supervised"},
        "status": "running",
        "estimated_finish": None,
        **values,
    }


def test_the_view_has_status_bar_curve_metrics_and_the_time_that_is_left() -> None:
    course = Course(job(estimated_finish=int(time.time()) + 600))
    assert "no step yet, about 10 min left" in drawn(course)
    for number, loss in enumerate((4.0, 2.0, 1.0, 1.0), 1):
        course.see(step(number, train_loss=loss, valid_loss=None, tokens_per_second=123.456))
    course.see({"type": "message", "level": "warn", "message": "Mind \x1b[31m[bold]this", "data": {}})

    view = drawn(course)
    assert "ftjob-1  supervised on base  running\n" in view
    assert "step 4/8, about 10 min left" in view
    assert "training loss 1  █▃▁▁\n" in view
    assert "tokens_per_second 123.5" in view
    assert "warn  Mind �[31m[bold]this" in view
    assert "away" not in view
    course.is_away = True
    assert "The server is away; trying again. The job goes on." in drawn(course)


def test_reinforcement_is_drawn_by_its_reward() -> None:
    course = Course(job())
    course.see(step(1, train_mean_reward=0.25, scores={"graders": []}))
    course.see(step(2, train_mean_reward=0.75))

    assert "training reward 0.75  ▁█" in drawn(course)


def test_a_sparkline_is_no_wider_than_it_may_be_and_shows_the_means() -> None:
    assert sparkline([1.0], 5) == "▁"
    assert sparkline([0.0, 1.0], 5) == "▁█"
    assert sparkline([3.0] * 9, 4) == "▁▁▁▁"
    assert sparkline([0.0, 0.0, 0.0, 7.0, 7.0, 7.0], 2) == "▁█"
    assert len(sparkline([float(number % 7) for number in range(10_000)], 40)) == 40


def test_events_are_read_as_they_are_written() -> None:
    lines = ["id: 1", "data: a", "", ": up to date", "", "event: x", "data:b", "data: c", "", "data: cut off"]

    assert list(read_events(lines)) == ["a", None, "b\nc"]
