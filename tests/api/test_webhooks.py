"""Webhooks, from the end of a job to the SDK that reads what was sent."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from openai import OpenAI

from caesura import deliverer
from caesura.deliverer import GIVEN_UP_S, HOLD_S, Deliverer, read_webhooks
from caesura.errors import SettingsInvalid
from caesura.jobs import JobError, Status
from caesura.settings import Settings, WebhookSettings
from caesura.tenancy import Role
from tests.api.service import HttpServer, Service, error_of, wait_until

PATH = "/v1/dashboard/webhook_endpoints"
ENDS = [f"fine_tuning.job.{status}" for status in ("succeeded", "failed", "cancelled")]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver:
    """A web service of the user's, which answers by `statuses` in turn, and then 200. None: it says nothing."""

    def __init__(self) -> None:
        self.statuses: list[int | None] = []
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.may_end = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
                status = receiver.statuses.pop(0) if receiver.statuses else 200
                if status is None:
                    receiver.may_end.wait(30)
                    return
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("location", "/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.may_end.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def events(self) -> list[tuple[str, str]]:
        return [(json.loads(body)["type"], json.loads(body)["data"]["id"]) for _, body in self.received]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"allowed_webhook_hosts": ["127.0.0.1"]})


class Clock:
    def __init__(self, service: Service) -> None:
        self.now = 2_000_000_000.0
        # Without jitter: the longest that each wait can be.
        self.deliverer = Deliverer(service.store.webhooks, ["127.0.0.1"], lambda: self.now, lambda: 1.0)

    def tick(self, after_s: float = 0.0) -> int:
        self.now += after_s
        return self.deliverer.tick()


@pytest.fixture
def clock(service: Service, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(service)
    monkeypatch.setattr("caesura.store.announcing.time.time", lambda: clock.now)
    return clock


Register = Callable[..., dict[str, Any]]


@pytest.fixture
def register(service: Service, receiver: Receiver) -> Register:
    def register(**body: Any) -> dict[str, Any]:
        answer = service.http.post(PATH, json={"name": "mine", "url": receiver.url, "event_types": ENDS} | body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return register


def end(service: Service, how: str) -> str:
    """A job that has ended so."""
    if how == "invalid file":
        job_id = service.create_job(training_file=service.upload(b'{"messages": []}\n'))
        service.validate()
        return job_id
    if how == "cancelled before it began":
        job_id = service.create_job()
        service.client.fine_tuning.jobs.cancel(job_id)
        return job_id
    job, lease = service.start_job()
    if how == "succeeded":
        service.finish(lease, 2)
    elif how == "failed":
        service.store.attempts.fail(lease, JobError("server_error", "It broke."))
    elif how == "cancelled":
        service.client.fine_tuning.jobs.cancel(job.id)
    elif how == "its worker died":
        for number in range(3):
            service.store.recovery.worker_gone("worker-here" if number == 0 else f"worker-{number}", "it was killed")
            service.store.attempts.claim(job.id, f"worker-{number + 1}", 60)
    return job.id


@pytest.mark.parametrize(
    ("how", "type"),
    [
        ("succeeded", "fine_tuning.job.succeeded"),
        ("failed", "fine_tuning.job.failed"),
        ("invalid file", "fine_tuning.job.failed"),
        ("its worker died", "fine_tuning.job.failed"),
        ("cancelled", "fine_tuning.job.cancelled"),
        ("cancelled before it began", "fine_tuning.job.cancelled"),
    ],
)
def test_every_end_of_a_job_is_told_once_and_read_by_the_sdk(
    service: Service, receiver: Receiver, register: Register, clock: Clock, how: str, type: str
) -> None:
    secret = register()["signing_secret"]
    job_id = end(service, how)

    assert clock.tick() == 1
    assert clock.tick(1e6) == 0
    assert receiver.events() == [(type, job_id)]
    headers, body = receiver.received[0]
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"].startswith("OpenAI/1.0")
    client = OpenAI(api_key="x", webhook_secret=secret)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: clock.now - 1e6 + 200)
        event = client.webhooks.unwrap(body, headers)
        assert (event.type, event.data.id) == (type, job_id)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(body + b" ", headers)


def test_what_does_not_come_is_sent_again_with_a_fresh_signature(
    service: Service, receiver: Receiver, register: Register, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = register()["signing_secret"]
    receiver.statuses = [500, 302, 404, None]
    monkeypatch.setattr(deliverer, "TIMEOUT_S", 0.3)
    end(service, "cancelled")

    assert clock.tick() == 1
    for wait_s in (5, 10, 20, 40):
        assert clock.tick(wait_s - 0.5) == 0
        assert clock.tick(0.5) == 1
    assert clock.tick(1e5) == 0

    assert len(receiver.received) == 5
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    assert len({body for _, body in receiver.received}) == 1
    assert len({headers["webhook-timestamp"] for headers, _ in receiver.received}) == 5
    client = OpenAI(api_key="x", webhook_secret=secret)
    for headers, body in receiver.received:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.time", lambda sent=headers: float(sent["webhook-timestamp"]))
            client.webhooks.verify_signature(body, headers)
            patch.setattr("time.time", lambda sent=headers: float(sent["webhook-timestamp"]) + 301)
            with pytest.raises(openai.InvalidWebhookSignatureError):
                client.webhooks.verify_signature(body, headers)


def test_a_receiver_that_is_not_there_is_given_up_after_three_days(
    service: Service, register: Register, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    register(url=f"http://127.0.0.1:{port}/")
    end(service, "cancelled")
    began, num_tries = clock.now, 0
    while clock.now - began < 2 * GIVEN_UP_S:
        num_tries += clock.tick(600)

    assert 15 <= num_tries <= 30
    assert "given up" in caplog.text
    assert service.store.webhooks.claim(clock.now + 1e9, HOLD_S, 10) == []


def test_a_delivery_in_hand_is_nobody_elses_until_who_has_it_is_believed_dead(
    service: Service, receiver: Receiver, register: Register, clock: Clock
) -> None:
    register()
    end(service, "cancelled")
    (held,) = service.store.webhooks.claim(clock.now, HOLD_S, 10)

    assert clock.tick(HOLD_S - 1) == 0
    assert clock.tick(1) == 1
    assert receiver.received[0][0]["webhook-id"] == held.event_id


def test_two_deliverers_send_nothing_twice(
    service: Service, receiver: Receiver, register: Register, clock: Clock
) -> None:
    register()
    for _ in range(6):
        end(service, "cancelled before it began")
    barrier = threading.Barrier(4)

    def tick() -> None:
        other = Deliverer(service.store.webhooks, ["127.0.0.1"], lambda: clock.now)
        barrier.wait()
        other.tick()

    threads = [threading.Thread(target=tick) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(receiver.received) == 6
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 6


def test_the_thread_sends_what_was_left_by_another(service: Service, receiver: Receiver, register: Register) -> None:
    register()
    end(service, "cancelled")
    running = Deliverer(service.store.webhooks, ["127.0.0.1"])
    running.start()
    try:
        wait_until(lambda: bool(receiver.received), "a webhook")
    finally:
        running.stop()
    assert not running._thread.is_alive()


def test_an_endpoint_is_told_what_it_asked_for_of_its_own_project_until_it_is_deleted(
    service: Service, receiver: Receiver, register: Register, clock: Clock, http_server: HttpServer
) -> None:
    register(event_types=["fine_tuning.job.failed"])
    endpoint = register()
    _, key = service.store.keys.create("theirs", organization="caesura", project="theirs", role=Role.OWNER)
    theirs = OpenAI(base_url=f"{http_server.origin}/v1", api_key=key, max_retries=0)
    file = theirs.files.create(file=("t.jsonl", b'{"messages": []}\n'), purpose="fine-tune")
    theirs.fine_tuning.jobs.cancel(theirs.fine_tuning.jobs.create(model="caesura-tiny", training_file=file.id).id)
    assert clock.tick() == 0
    job_id = end(service, "cancelled")
    assert clock.tick() == 1
    assert receiver.events() == [(ENDS[2], job_id)]

    end(service, "cancelled")
    assert service.http.delete(f"{PATH}/{endpoint['id']}").json() == {
        "id": endpoint["id"],
        "object": "webhook.endpoint",
        "deleted": True,
    }
    assert clock.tick() == 0


def test_an_endpoint_is_listed_and_changed_without_its_secret(service: Service, register: Register) -> None:
    made = register()
    assert made["signing_secret"].startswith("whsec_")
    assert made.pop("signing_secret").endswith(made["signing_secret_hint"].removeprefix("whsec_..."))
    assert service.http.get(f"{PATH}/{made['id']}").json() == made
    changed = service.http.post(f"{PATH}/{made['id']}", json={"name": "other"}).json()
    assert changed == made | {"name": "other"}
    listed = service.http.get(PATH).json()
    assert listed["data"] == [changed]
    assert (listed["has_more"], listed["first_id"]) == (False, made["id"])
    refused = service.http.post(f"{PATH}/{made['id']}", json={"signing_secret": "x"})
    assert error_of(refused)["code"] == "unknown_parameter"


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/h",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/h",
        "http://[::ffff:10.0.0.1]/h",
        "http://[fd00::1]/h",
        "http://0x0a000001/h",
        "ftp://example.com/",
        "https://user:secret@example.com/",
        "/hook",
    ],
)
def test_a_url_that_is_not_for_the_public_is_refused(service: Service, url: str) -> None:
    answer = service.http.post(PATH, json={"name": "n", "url": url, "event_types": ENDS})

    assert answer.status_code == 400
    assert error_of(answer)["param"] == "url"


def test_a_name_that_leads_to_a_private_address_later_is_not_called(
    service: Service,
    register: Register,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    register(url="http://hooks.example.com/")

    async def getaddrinfo(*_args: Any, **_kwargs: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.1.2.3", 80))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    end(service, "cancelled")

    assert clock.tick() == 1
    assert "allowed_webhook_hosts" in caplog.text


def test_pauses_are_told_to_who_may_ask_for_them(
    service: Service, receiver: Receiver, register: Register, clock: Clock
) -> None:
    types = ["fine_tuning.job.paused", "fine_tuning.job.resumed"]
    refused = service.http.post(PATH, json={"name": "n", "url": receiver.url, "event_types": types})
    assert "webhook_pause_events" in error_of(refused)["message"]
    service.server.settings.__dict__["webhook_pause_events"] = True
    register(event_types=types)
    job_id = service.create_job()
    service.client.fine_tuning.jobs.pause(job_id)
    service.client.fine_tuning.jobs.resume(job_id)
    clock.tick()

    # They are sent side by side: either may come first.
    assert sorted(receiver.events()) == [(types[0], job_id), (types[1], job_id)]
    assert service.store.jobs.get(job_id).status is Status.VALIDATING_FILES


def test_endpoints_of_the_settings_hear_of_every_project_and_go_with_the_settings(
    service: Service, receiver: Receiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    configured = read_webhooks([WebhookSettings(url=receiver.url, secret_env="HOOK_SECRET")])
    service.store.webhooks.configure(configured)
    service.store.webhooks.configure(configured)
    job_id = end(service, "cancelled")
    assert clock.tick() == 1
    assert receiver.events() == [(ENDS[2], job_id)]
    assert service.http.get(PATH).json()["data"] == []
    headers, body = receiver.received[0]
    monkeypatch.setattr("time.time", lambda: clock.now)
    OpenAI(api_key="x", webhook_secret=SECRET).webhooks.verify_signature(body, headers)

    service.store.webhooks.configure([])
    end(service, "cancelled")
    assert clock.tick() == 0


@pytest.mark.parametrize("secret", ["", "whsec_é", "whsec_abc"])
def test_a_secret_of_the_settings_that_cannot_sign_is_told_at_the_start(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", secret)

    with pytest.raises(SettingsInvalid, match="HOOK_SECRET"):
        read_webhooks([WebhookSettings(url="https://example.com", secret_env="HOOK_SECRET")])


def test_there_are_only_so_many_endpoints(service: Service, register: Register) -> None:
    for _ in range(32):
        register()
    answer = service.http.post(PATH, json={"name": "n", "url": "https://example.com", "event_types": ENDS})

    assert answer.status_code == 400
    assert "32" in error_of(answer)["message"]
