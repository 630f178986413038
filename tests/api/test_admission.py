"""The limit of answers at once. Each way in which an answer can end gives its places back."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest
from openai import OpenAI

from caesura.api.admission import Admission
from caesura.errors import EngineUnavailable, InvalidRequest
from caesura.inference.engine import Finished, Text
from caesura.settings import Settings
from tests.api.service import KEY, PATIENCE_S, HttpServer, Service, Waiting, build_service, error_of, wait_until

LIMIT = 3
MESSAGES: Any = [{"role": "user", "content": "Hi"}]
#: Every endpoint that takes places, and a body that takes one.
ASKED: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": MESSAGES},
    "completions": {"prompt": "Once"},
    "embeddings": {"input": "four"},
    "responses": {"input": "Hi"},
}
GENERATING = ["chat/completions", "completions", "responses"]


@pytest.fixture
def service(tmp_path: Path, http_server: HttpServer, client: OpenAI, http: httpx.Client) -> Iterator[Service]:
    settings = Settings(data_dir=tmp_path / "data", max_answers=LIMIT)
    service = build_service(settings, http_server, client, http)
    yield service
    service.close()


def post(service: Service, path: str = "chat/completions", **extra: Any) -> httpx.Response:
    return service.http.post(f"/v1/{path}", json={"model": "caesura-tiny", **ASKED[path], **extra})


def num_taken(service: Service) -> int:
    return cast(Admission, service.app.state.admission).num_taken


def assert_all_are_free(service: Service) -> None:
    """Places are given back just after the client has read its answer's end."""
    wait_until(lambda: num_taken(service) == 0, "every place is free")


class Asking:
    """Someone who waits for an answer that is in the making until the test lets it be `over`."""

    def __init__(self, service: Service, pool: ThreadPoolExecutor, path: str = "chat/completions", **extra: Any):
        self.waiting = Waiting()
        finishes = [Finished("stop", 5, 1, index) for index in range(extra.get("n", 1))]
        service.engine.next_pieces.append([self.waiting, *finishes])
        service.engine.waits.clear()
        self._answer = pool.submit(post, service, path, **extra)
        assert service.engine.waits.wait(PATIENCE_S)

    def end(self) -> httpx.Response:
        self.waiting.over.set()
        return self._answer.result(PATIENCE_S)


@pytest.fixture
def ask(service: Service) -> Iterator[Callable[..., Asking]]:
    asking: list[Asking] = []
    with ThreadPoolExecutor(LIMIT) as pool:

        def ask(path: str = "chat/completions", **extra: Any) -> Asking:
            asking.append(Asking(service, pool, path, **extra))
            return asking[-1]

        yield ask
        for one in asking:
            one.waiting.over.set()


@pytest.mark.parametrize("path", ASKED)
def test_one_more_than_the_limit_is_told_to_come_back(service: Service, ask: Callable[..., Asking], path: str) -> None:
    ask(n=2)
    ask()
    answer = post(service, path)

    assert answer.status_code == 429
    error = error_of(answer)
    assert (error["type"], error["param"], error["code"]) == ("requests", None, "rate_limit_exceeded")
    for part in ("at most 3 answers at once", "3 are in the making", "asks for 1 more", "try again", "max_answers"):
        assert part in error["message"]
    assert answer.headers["retry-after"] == "1"
    assert "x-should-retry" not in answer.headers
    assert answer.headers["x-ratelimit-limit-requests"] == "3"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert answer.headers["x-ratelimit-reset-requests"] == "1s"


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("path", ASKED)
def test_every_answer_tells_what_is_left(
    service: Service, ask: Callable[..., Asking], path: str, streams: bool
) -> None:
    ask()
    answer = post(service, path, **({"stream": True} if streams and path != "embeddings" else {}))

    assert answer.status_code == 200
    told = [answer.headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining", "reset")]
    assert told == ["3", "1", "1s"]


@pytest.mark.parametrize(("extra", "status"), [({"model": "gpt-99"}, 404), ({"n": 0}, 400), ({"n": 4}, 400)])
def test_a_fault_tells_what_is_left_too(service: Service, extra: dict[str, Any], status: int) -> None:
    answer = post(service, **extra)

    assert answer.status_code == status
    assert answer.headers["x-ratelimit-limit-requests"] == "3"


def test_what_is_no_answer_of_a_model_tells_of_no_limit(service: Service) -> None:
    assert not [name for name in service.http.get("/v1/models").headers if name.startswith("x-ratelimit")]


def test_the_sdk_raises_its_own_error_and_tries_again_by_itself(service: Service, ask: Callable[..., Asking]) -> None:
    asking = ask(n=3)
    with pytest.raises(openai.RateLimitError) as caught:
        service.client.chat.completions.create(model="caesura-tiny", messages=MESSAGES)
    assert caught.value.code == "rate_limit_exceeded"

    refused = openai.OpenAI(base_url=service.client.base_url, api_key=KEY, max_retries=10)
    with refused, ThreadPoolExecutor(1) as pool:
        again = pool.submit(refused.chat.completions.create, model="caesura-tiny", messages=MESSAGES)
        asking.end()
        assert again.result(PATIENCE_S).choices[0].message.content == "Hello world"


@pytest.mark.parametrize(
    ("path", "extra", "taken"),
    [
        ("chat/completions", {}, 1),
        ("chat/completions", {"n": 3}, 3),
        ("completions", {"n": 2}, 2),
        ("completions", {"prompt": ["a", "b"]}, 2),
        ("completions", {"prompt": [1, 2, 3, 4, 5]}, 1),
        ("completions", {"best_of": 3}, 3),
    ],
)
def test_every_answer_that_is_made_takes_a_place(
    service: Service, ask: Callable[..., Asking], path: str, extra: dict[str, Any], taken: int
) -> None:
    ask(path, **extra)

    assert num_taken(service) == taken


@pytest.mark.parametrize(
    ("path", "extra", "param", "number"),
    [
        ("chat/completions", {"n": 4}, "n", 4),
        ("completions", {"n": 4}, "n", 4),
        ("completions", {"best_of": 5}, "best_of", 5),
        ("completions", {"prompt": ["a", "b"], "n": 2}, "prompt", 4),
    ],
)
@pytest.mark.parametrize("is_busy", [False, True])
def test_more_than_there_ever_are_is_a_400_that_names_the_parameter(
    service: Service,
    ask: Callable[..., Asking],
    path: str,
    extra: dict[str, Any],
    param: str,
    number: int,
    is_busy: bool,
) -> None:
    if is_busy:
        ask()
    answer = post(service, path, **extra)

    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"] == param
    assert f"at most 3 answers at once, and this request alone asks for {number}." in error["message"]
    assert service.engine.requests == [] or is_busy


# However an answer ends, its places are free again.


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("path", GENERATING)
def test_an_answer_that_is_whole_frees_its_place(service: Service, path: str, streams: bool) -> None:
    for _ in range(LIMIT + 1):
        assert post(service, path, stream=streams).status_code == 200
        assert_all_are_free(service)


def test_embeddings_free_their_place(service: Service) -> None:
    for _ in range(LIMIT + 1):
        assert post(service, "embeddings").status_code == 200
        assert_all_are_free(service)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize(
    "fault", [InvalidRequest("Too long.", param="messages"), EngineUnavailable("It stopped."), RuntimeError("secret")]
)
def test_a_fault_before_the_first_piece_frees_the_place(
    service: Service, path: str, streams: bool, fault: Exception
) -> None:
    service.engine.pieces = [fault]
    assert post(service, path, stream=streams).status_code >= 400

    assert_all_are_free(service)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("path", GENERATING)
def test_a_fault_in_the_middle_frees_the_place(service: Service, path: str, streams: bool) -> None:
    service.engine.pieces = [Text("Hello"), EngineUnavailable("It stopped.")]
    assert "It stopped." in post(service, path, stream=streams).text

    assert_all_are_free(service)


@pytest.mark.parametrize("extra", [{"model": "gpt-99"}, {"tool_choice": "auto"}])
def test_a_fault_in_what_is_asked_frees_the_place(service: Service, extra: dict[str, Any]) -> None:
    assert post(service, **extra).status_code >= 400

    assert_all_are_free(service)


@pytest.mark.parametrize("path", GENERATING)
def test_a_client_who_leaves_a_stream_frees_its_place(service: Service, path: str) -> None:
    service.engine.pieces = [Text("first"), Waiting()]
    body = {"model": "caesura-tiny", **ASKED[path], "stream": True}
    with service.http.stream("POST", f"/v1/{path}", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert num_taken(service) == 1

    assert_all_are_free(service)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("path", GENERATING)
def test_a_client_who_does_not_wait_for_the_answer_frees_its_place(service: Service, path: str, streams: bool) -> None:
    service.engine.pieces = [Waiting()]
    url = service.http.base_url
    body = json.dumps({"model": "caesura-tiny", **ASKED[path], "stream": streams})
    head = (
        f"POST /v1/{path} HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port)) as impatient:
        impatient.sendall((head + body).encode())
        assert service.engine.waits.wait(PATIENCE_S)
        assert num_taken(service) == 1

    assert_all_are_free(service)


def test_a_place_is_held_until_the_last_of_several_answers_is_over(service: Service) -> None:
    waiting = Waiting()
    service.engine.pieces = [Text("a"), Finished("stop", 5, 1), waiting, Finished("stop", 5, 1, 1)]
    with service.client.chat.completions.create(model="caesura-tiny", messages=MESSAGES, n=2, stream=True) as chunks:
        assert any(
            choice.finish_reason for chunk in (next(chunks), next(chunks), next(chunks)) for choice in chunk.choices
        )
        assert num_taken(service) == 2
        waiting.over.set()
        list(chunks)

    assert_all_are_free(service)
