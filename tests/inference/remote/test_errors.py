"""The remote engine against vLLM's wire, word for word. What both engines promise is in test_engines.py."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from starlette.responses import JSONResponse, RedirectResponse, Response

from caesura.errors import EngineUnavailable, InvalidRequest
from caesura.inference import remote_adapters
from caesura.inference.engine import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Text,
)
from caesura.inference.remote import RemoteEngine
from caesura.inference.remote_wire import Answers
from tests.inference.fake_vllm import BASE, DONE, FakeVllm, error, error_body, event
from tests.inference.remote.asking import (
    CHAT,
    COMPLETION,
    HELLO,
    TOOL,
    ask,
    delta,
    refuse,
    script,
    stream,
)

# Errors.


@pytest.mark.parametrize(
    ("request_", "refusal", "param", "code"),
    [
        (
            CHAT,
            error(400, "maximum context length is 512", param="input_tokens"),
            "messages",
            "context_length_exceeded",
        ),
        (CHAT, error(400, "the model's context length is only 512"), "messages", "context_length_exceeded"),
        (COMPLETION, error(400, "maximum context length is 512"), "prompt", "context_length_exceeded"),
        (
            CHAT,
            JSONResponse({"error": {"message": "Too long.", "code": "context_length_exceeded"}}, 400),
            "messages",
            "context_length_exceeded",
        ),
        (CHAT, error(400, "Bad value.", param="top_logprobs"), "top_logprobs", None),
        (CHAT, error(400, "token_id(s) [9999] in logit_bias contain out-of-vocab token ids."), "logit_bias", None),
        (COMPLETION, error(400, "Token id 9999 is out of vocabulary"), "prompt", None),
        (replace(CHAT, tools=[TOOL]), error(400, '"auto" tool choice requires --x'), "tools", None),
        (
            replace(CHAT, json_schema={}),
            error(400, "The provided JSON schema contains features not supported by xgrammar."),
            "response_format.json_schema.schema",
            None,
        ),
        (CHAT, error(400, "Chat template: roles must alternate"), "messages", None),
        (CHAT, JSONResponse({"detail": "Something is wrong."}, 422), None, None),
        (CHAT, error(501, "Not done.", "NotImplementedError"), None, None),
        (CHAT, Response(b"\xff bare", 400), None, None),
    ],
)
def test_a_fault_of_the_request_is_told_as_such(
    request_: ChatRequest | CompletionRequest,
    refusal: Response,
    param: str | None,
    code: str | None,
    fake: FakeVllm,
    open_engine: Callable[..., RemoteEngine],
) -> None:
    fake.answer = refuse(refusal)

    with pytest.raises(InvalidRequest) as raised:
        ask(open_engine(), request_)

    assert (raised.value.param, raised.value.code) == (param, code)
    told = json.dumps(raised.value.message, ensure_ascii=False)[1:-1]
    assert told in bytes(refusal.body).decode(errors="replace")


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (error(500, "EngineCore encountered an issue."), "status 500"),
        (Response("upstream", 502), "status 502"),
        (error(503, "The model is not ready"), "status 503"),
        (error(429, "Slow down"), "too much to do"),
        (JSONResponse({"error": "Unauthorized"}, 401), "engine_api_key_env"),
        (Response("no", 403), "engine_api_key_env"),
        (RedirectResponse("http://127.0.0.1:9/v1", 307), "redirect"),
    ],
)
def test_what_time_or_the_operator_may_heal_is_unavailable_and_asked_once(
    refusal: Response, words: str, fake: FakeVllm, open_engine: Callable[..., RemoteEngine]
) -> None:
    fake.answer = refuse(refusal)

    with pytest.raises(EngineUnavailable, match="'engine_url'") as raised:
        ask(open_engine())

    assert words in raised.value.message
    assert len(fake.requests) == 1


def test_neither_the_url_nor_the_key_is_told(
    fake: FakeVllm,
    open_engine: Callable[..., RemoteEngine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("KEY_OF_THE_ENGINE", "sk-secret")
    caplog.set_level(logging.DEBUG, "caesura")
    for status, expected in ((401, EngineUnavailable), (400, InvalidRequest)):
        fake.answer = refuse(error(status, "Incorrect API key provided: sk-secret"))
        with pytest.raises(expected) as raised:
            ask(open_engine(engine_api_key_env="KEY_OF_THE_ENGINE"))
        assert "sk-secret" not in raised.value.message
        assert "127.0.0.1" not in raised.value.message

    assert "Incorrect API key provided: ***" in caplog.text
    assert "sk-secret" not in caplog.text


def test_a_url_that_leads_elsewhere_is_told(url: str, open_engine: Callable[..., RemoteEngine]) -> None:
    with pytest.raises(InvalidRequest, match="/v1"):
        ask(open_engine(engine_url=url.removesuffix("/v1")))


def test_a_server_that_is_not_there_is_unavailable(open_engine: Callable[..., RemoteEngine]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    with pytest.raises(EngineUnavailable, match="cannot be reached") as raised:
        ask(open_engine(engine_url=f"http://127.0.0.1:{port}/v1"))

    assert str(port) not in raised.value.message


def test_a_server_that_is_silent_is_not_waited_for_for_ever(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_adapters, "SILENCE_TIMEOUT_S", 0.2)
    released = threading.Event()
    fake.answer = script(event(HELLO[1]), released)
    try:
        with pytest.raises(EngineUnavailable, match="silent"):
            ask(open_engine())
    finally:
        released.set()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"choices": []}',
        event(HELLO[1]),
        event(HELLO[1]) + event(delta(finish_reason="stop")),
        event(HELLO[1]) + DONE,
        stream(*HELLO),
        stream(*HELLO)[: -len(DONE) - 4],
    ],
    ids=["empty", "no stream", "half", "no usage", "half and done", "done without usage", "half a line"],
)
def test_an_answer_that_breaks_off_is_unavailable(
    data: bytes, fake: FakeVllm, open_engine: Callable[..., RemoteEngine]
) -> None:
    fake.answer = script(b"", data)

    with pytest.raises(EngineUnavailable):
        ask(open_engine())


@pytest.mark.parametrize(
    "nonsense",
    [
        b"data: {\n\n",
        b"data: []\n\n",
        b"data: \xff\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        event({"choices": [{"index": "first"}]}),
        event({"choices": [{"index": 1, "delta": {"content": "of nobody"}}]}),
        event(delta(finish_reason="abort")),
        event(delta(tool_calls=[{"index": 0, "function": {"arguments": "{}"}}])),
        event(delta(tool_calls=[{"index": 1, "function": {"name": "f"}}])),
    ],
)
def test_nonsense_is_unavailable(nonsense: bytes) -> None:
    with pytest.raises(EngineUnavailable, match="makes no sense"):
        Answers(CHAT).feed(nonsense)


@pytest.mark.parametrize("reply", [b"", b"[]", b'{"data": [], "usage": {"prompt_tokens": 1}}'])
def test_embeddings_that_make_no_sense_are_unavailable(
    reply: bytes, fake: FakeVllm, open_engine: Callable[..., RemoteEngine]
) -> None:
    fake.answer = script(b"", reply)

    with pytest.raises(EngineUnavailable, match="makes no sense"):
        ask(open_engine(), EmbedRequest(["a"], BASE))


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (error_body(500, "Internal server error", "InternalServerError"), EngineUnavailable),
        ({"error": {"message": "no code"}}, EngineUnavailable),
        ({"error": "a bare text"}, EngineUnavailable),
        ({"object": "error", "message": "an older form", "code": 500}, EngineUnavailable),
        (error_body(400, "Failed to compile the grammar"), InvalidRequest),
    ],
)
def test_an_error_in_the_middle_ends_the_answer(told: dict[str, Any], expected: type[Exception]) -> None:
    answers = Answers(CHAT)
    assert answers.feed(event(HELLO[1])) == [Text("Hel")]

    with pytest.raises(expected):
        answers.feed(event(told) + DONE)
