from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from caesura.api.front import Front
from caesura.api.gate import Gate
from caesura.api.keyring import KeyRing
from caesura.app import build_app
from caesura.settings import Settings
from caesura.store.keys import Keys
from caesura.store.sqlite import SqliteDatabase
from tests.api.service import KEY, HttpServer, Service, error_of


@pytest.fixture
def stranger(http_server: HttpServer, idle_service: Service) -> Iterator[httpx.Client]:
    """Has no key."""
    with httpx.Client(base_url=http_server.origin) as client:
        yield client


def test_a_request_without_a_key_is_told_how_to_send_one(stranger: httpx.Client) -> None:
    for path in ("/v1/models", "/v1/files", "/v1/nowhere", "/assets", "/healthz/more"):
        answer = stranger.get(path)

        assert answer.status_code == 401
        error = error_of(answer)
        assert error["message"].startswith("You didn't provide an API key.")
        assert (error["type"], error["code"]) == ("invalid_request_error", None)


def test_a_wrong_key_is_refused_and_not_told_whole(http_server: HttpServer, idle_service: Service) -> None:
    wrong = OpenAI(base_url=f"{http_server.origin}/v1", api_key="sk-wrong-0123456789", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as caught:
        wrong.models.list()

    assert caught.value.code == "invalid_api_key"
    assert "sk-wr***89" in caught.value.message
    assert "sk-wrong-0123456789" not in caught.value.message


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": f"bearer  {KEY}"}, 200),
        ({"api-key": KEY}, 200),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": KEY}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"api-key": ""}, 401),
        ({"authorization": f"Bearer {KEY}x"}, 401),
        ({"authorization": f"Bearer {KEY[:-1]}"}, 401),
        ({"api-key": "short"}, 401),
    ],
)
def test_the_key_is_taken_from_either_header(stranger: httpx.Client, headers: dict[str, str], status: int) -> None:
    answer = stranger.get("/v1/models", headers=headers)

    assert answer.status_code == status
    assert "short" not in answer.text


def test_a_key_may_hold_any_characters(service: Service, http_server: HttpServer, stranger: httpx.Client) -> None:
    http_server.app = build_app(service.server, "schlüssel-🔑")

    assert stranger.get("/v1/models", headers={"api-key": "schlüssel-🔑".encode()}).status_code == 200
    assert stranger.get("/v1/models", headers={"api-key": "schlüssel-🔒".encode()}).status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/healthz/"])
def test_health_is_answered_without_a_key(stranger: httpx.Client, path: str) -> None:
    answer = stranger.get(path)

    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 200),
        ("GET", "/healthz", 200),
        ("GET", "/v1/nowhere", 404),
        ("PATCH", "/v1/models", 405),
        ("GET", "/v1/files?limit=0", 400),
        ("POST", "/v1/chat/completions", 400),
    ],
)
def test_every_answer_has_an_id_of_its_own_and_openais_headers(
    idle_service: Service, method: str, path: str, status: int
) -> None:
    answers = [idle_service.http.request(method, path) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [status, status]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 2
    for answer in answers:
        assert re.fullmatch("req_[0-9a-f]{32}", answer.headers["x-request-id"])
        assert answer.headers["openai-version"] == "2020-10-01"
        assert answer.headers["openai-organization"] == "caesura"
        assert re.fullmatch(r"\d+", answer.headers["openai-processing-ms"])
        assert answer.headers["content-type"] == "application/json"


def test_the_sdk_finds_the_requests_id(service: Service) -> None:
    job_id = service.create_job()

    assert service.client.fine_tuning.jobs.retrieve(job_id)._request_id is not None


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/files/", "/v1/fine_tuning/jobs/", "/v1/models/caesura-tiny/"])
def test_a_trailing_slash_is_taken_as_none_and_never_redirected(idle_service: Service, path: str) -> None:
    assert idle_service.http.get(path).status_code == 200


def test_a_trailing_slash_is_taken_where_something_is_posted(service: Service) -> None:
    job_id = service.create_job()

    assert service.http.post(f"/v1/fine_tuning/jobs/{job_id}/pause/").json()["status"] == "paused"
    files = {"file": ("a.jsonl", b"{}")}
    assert service.http.post("/v1/files/", files=files, data={"purpose": "fine-tune"}).status_code == 200


def front(app: ASGIApp) -> Front:
    gate = Gate(KeyRing(Keys(SqliteDatabase(Path(":memory:"))), {}), None)
    return Front(app, gate=gate, settings=Settings(), see=lambda _scope, _status, _took_s: None)


def run(app: Any, *received: dict[str, Any]) -> list[dict[str, Any]]:
    """What the application sends to a client who sent this."""
    sent: list[dict[str, Any]] = []
    messages = iter(received)

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/healthz", "headers": []}
    asyncio.run(app(scope, receive, send))
    return sent


def test_a_client_who_leaves_is_not_answered_and_no_fault_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        await Request({"type": "http"}, receive).body()

    assert run(front(app), {"type": "http.disconnect"}) == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_an_answer_that_breaks_half_sent_is_broken_off(caplog: pytest.LogCaptureFixture) -> None:
    """No second answer is sent into the first: closing the connection is all that is left."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        run(front(app))
    assert "half way" in caplog.text


def test_what_is_not_http_passes_untouched() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope)

    asyncio.run(front(app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]

    assert seen == [{"type": "lifespan"}]
