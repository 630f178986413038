from __future__ import annotations

import json
import logging
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from caesura import __version__
from caesura.errors import BlobDamaged, EngineUnavailable, InvalidRequest
from caesura.inference.engine import Finished, Text
from tests.api.service import (
    KEY,
    PATIENCE_S,
    EngineDouble,
    Service,
    Waiting,
    assert_shape,
    error_of,
)

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
BODY = {"model": "caesura-tiny", "messages": MESSAGES}
NoneType = type(None)
USAGE = {
    "prompt_tokens": int,
    "completion_tokens": int,
    "total_tokens": int,
    "prompt_tokens_details": {"cached_tokens": int, "audio_tokens": int},
    "completion_tokens_details": {
        "reasoning_tokens": int,
        "audio_tokens": int,
        "accepted_prediction_tokens": int,
        "rejected_prediction_tokens": int,
    },
}
COMPLETION = {
    "id": str,
    "object": str,
    "created": int,
    "model": str,
    "choices": [
        {
            "index": int,
            "message": {"role": str, "content": str, "refusal": NoneType, "annotations": list},
            "logprobs": NoneType,
            "finish_reason": str,
        }
    ],
    "usage": USAGE,
    "service_tier": str,
    "system_fingerprint": str,
}
CHUNK = {
    "id": str,
    "created": int,
    "model": str,
    "choices": list,
    "object": str,
    "service_tier": str,
    "system_fingerprint": str,
}
TOKENS = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def post(service: Service, **extra: Any) -> httpx.Response:
    # As ASCII: what UTF-8 cannot hold is sent too.
    content, headers = json.dumps({**BODY, **extra}, ensure_ascii=True), {"content-type": "application/json"}
    return service.http.post("/v1/chat/completions", content=content, headers=headers)


def stream(service: Service, **extra: Any) -> list[Any]:
    """The data of the stream's events; of the last one the text."""
    answer = post(service, stream=True, **extra)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events.pop() == ""
    data = [event.removeprefix("data: ") for event in events]
    assert [f"data: {text}" for text in data] == events
    return [json.loads(text) if text.startswith("{") else text for text in data]


def test_an_answer_is_told_in_openais_form(service: Service) -> None:
    completion = post(service).json()

    assert_shape(completion, COMPLETION)
    assert re.fullmatch(r"chatcmpl-[A-Za-z0-9]{24}", completion["id"])
    assert completion["object"] == "chat.completion"
    assert completion["choices"][0]["message"]["content"] == "Hello world"
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert completion["usage"].items() >= TOKENS.items()
    assert (completion["service_tier"], completion["system_fingerprint"]) == ("default", f"fp_{__version__}")


def test_the_sdk_reads_an_answer(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Text("Füße 🦶 \u2028"), Finished("length", 1, 1)]
    completion = service.client.chat.completions.create(model="caesura-tiny", messages=MESSAGES)

    assert completion.choices[0].message.content == "Füße 🦶 \u2028"
    assert completion.choices[0].finish_reason == "length"


def test_what_is_asked_reaches_the_engine(service: Service, engine: EngineDouble) -> None:
    service.client.chat.completions.create(
        model="caesura-tiny",
        messages=[
            {"role": "developer", "content": "Be brief.", "name": "dev"},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": None, "tool_calls": []},
        ],
        max_completion_tokens=7,
        temperature=0,
        top_p=0.5,
        seed=-1,
        stop=["a", "", "b"],
        n=1,
        user="me",
        metadata={"k": "v"},
        logprobs=False,
        frequency_penalty=0,
        tools=[],
    )

    (request,) = engine.requests
    assert (request.base, request.adapter, request.tools) == ("caesura-tiny", None, None)
    assert request.messages == [
        {"role": "developer", "content": "Be brief.", "name": "dev"},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "tool_calls": []},
    ]
    assert (request.max_tokens, request.temperature, request.top_p) == (7, 0.0, 0.5)
    assert (request.seed, request.stop) == (-1, ("a", "b"))


def test_what_is_not_said_has_openais_defaults(service: Service, engine: EngineDouble) -> None:
    post(service, temperature=None, top_p=None, stop=None, seed=None, stream=None, n=None)
    post(service, max_tokens=3, stop="end")

    first, second = engine.requests
    assert (first.max_tokens, first.temperature, first.top_p, first.seed, first.stop) == (None, 1.0, 1.0, None, ())
    assert (second.max_tokens, second.stop) == (3, ("end",))


def test_an_alias_answers_as_the_base_that_it_means(service: Service, engine: EngineDouble) -> None:
    completion = service.client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)

    assert completion.model == engine.requests[0].base == "caesura-tiny"


@pytest.mark.parametrize("which", ["checkpoint", "final"])
def test_a_tuned_model_answers_with_its_adapter(service: Service, engine: EngineDouble, which: str) -> None:
    job, lease = service.start_job()
    service.save(lease, 1)
    service.finish(lease, 2)
    name = job.model_name if which == "final" else f"{job.model_name}:ckpt-step-1"
    completion = service.client.chat.completions.create(model=name, messages=MESSAGES)

    model = service.store.models.find(name)
    assert model is not None
    assert completion.model == name
    assert (engine.requests[0].base, engine.requests[0].adapter) == ("caesura-tiny", model.adapter)


def test_a_model_that_is_deleted_or_unknown_is_not_found(service: Service) -> None:
    job, lease = service.start_job()
    service.finish(lease, 1)
    service.client.models.delete(job.model_name)
    for name in (job.model_name, "gpt-99"):
        with pytest.raises(openai.NotFoundError) as caught:
            service.client.chat.completions.create(model=name, messages=MESSAGES)

        assert caught.value.body == {
            "message": f"The model `{name}` does not exist or you do not have access to it.",
            "type": "invalid_request_error",
            "param": None,
            "code": "model_not_found",
        }


def test_a_model_whose_base_was_taken_out_of_the_settings_says_so(service: Service) -> None:
    job, lease = service.start_job()
    service.finish(lease, 1)
    with service.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE models SET base = 'gone/base'")
    answer = post(service, model=job.model_name)

    assert answer.status_code == 404
    assert "was tuned from 'gone/base', which is no longer" in error_of(answer)["message"]


def test_a_stream_comes_in_openais_order(service: Service) -> None:
    *chunks, done = stream(service)

    assert done == "[DONE]"
    for chunk in chunks:
        assert_shape(chunk, CHUNK)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert (chunks[0]["object"], chunks[0]["model"]) == ("chat.completion.chunk", "caesura-tiny")
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": {"role": "assistant", "content": "", "refusal": None}, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}],
        [{"index": 0, "delta": {"content": " world"}, "finish_reason": None}],
        [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    ]


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_that_is_over_frees_the_engine(service: Service, engine: EngineDouble, streams: bool) -> None:
    assert post(service, stream=streams).status_code == 200

    assert engine.is_done.wait(PATIENCE_S)


def test_a_stream_of_nothing_has_its_role_and_its_end(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Finished("length", 3, 0)]

    choices = [chunk["choices"][0] for chunk in stream(service)[:-1]]
    assert [choice["finish_reason"] for choice in choices] == [None, "length"]


def test_usage_comes_last_with_no_choices_where_it_is_asked_for(service: Service) -> None:
    *chunks, usage, done = stream(service, stream_options={"include_usage": True})

    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * 4
    assert usage["choices"] == []
    assert_shape(usage["usage"], USAGE)
    assert usage["usage"].items() >= TOKENS.items()


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": None}])
def test_usage_is_left_out_where_it_is_not_asked_for(service: Service, options: dict[str, Any] | None) -> None:
    chunks = stream(service, stream_options=options)[:-1]

    assert len(chunks) == 4
    assert not any("usage" in chunk for chunk in chunks)


def test_the_sdk_reads_a_stream(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Text("Füße"), Text(" 🦶\n\ndata: x"), Text("\u2028"), Finished("stop", 1, 3)]
    chunks = list(
        service.client.chat.completions.create(
            model="caesura-tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )

    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "Füße 🦶\n\ndata: x\u2028"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 4


def test_a_piece_is_sent_when_it_is_made(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Text("first"), Waiting()]
    with service.client.chat.completions.create(model="caesura-tiny", messages=MESSAGES, stream=True) as chunks:
        role, first = next(chunks), next(chunks)
        assert (role.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "first")
        assert not engine.is_done.is_set()


@pytest.mark.parametrize("num_read", [0, 1, 2])
def test_a_client_who_leaves_a_stream_frees_the_engine(
    service: Service, engine: EngineDouble, num_read: int, caplog: pytest.LogCaptureFixture
) -> None:
    engine.pieces = [Text("first"), Waiting()]
    with service.client.chat.completions.create(model="caesura-tiny", messages=MESSAGES, stream=True) as chunks:
        for _ in range(num_read):
            next(chunks)

    assert engine.is_done.wait(PATIENCE_S)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_who_does_not_wait_for_the_answer_frees_the_engine(
    service: Service, engine: EngineDouble, streams: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine.pieces = [Waiting()]
    url, body = service.http.base_url, json.dumps({**BODY, "stream": streams})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port)) as impatient:
        impatient.sendall((head + body).encode())
        assert engine.waits.wait(PATIENCE_S)

    assert engine.is_done.wait(PATIENCE_S)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_an_answer_that_takes_long_hinders_nobody(service: Service, engine: EngineDouble) -> None:
    waiting = Waiting()
    engine.pieces = [waiting, Finished("stop", 1, 1)]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, service)
        assert engine.waits.wait(PATIENCE_S)
        assert list(service.client.models.list())
        assert not asked.done()
        waiting.over.set()

    assert asked.result().status_code == 200


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (
            InvalidRequest("This model's maximum context length is 8 tokens.", param="messages", code="c"),
            openai.BadRequestError,
            "This model's maximum context length is 8 tokens.",
        ),
        (EngineUnavailable("The inference engine stopped."), openai.InternalServerError, "The inference engine stopp"),
        (BlobDamaged("secret"), openai.InternalServerError, "The server had an error"),
        (RuntimeError("secret"), openai.InternalServerError, "The server had an error"),
    ],
)
def test_a_fault_before_the_first_piece_has_its_status(
    service: Service,
    engine: EngineDouble,
    streams: bool,
    fault: Exception,
    kind: type[openai.APIStatusError],
    message: str,
) -> None:
    engine.pieces = [fault]
    with pytest.raises(kind) as caught:
        service.client.chat.completions.create(model="caesura-tiny", messages=MESSAGES, stream=streams)

    assert caught.value.status_code == getattr(fault, "status", 500)
    assert message in error_of(caught.value.response)["message"]
    assert "secret" not in caught.value.response.text


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (EngineUnavailable("The inference engine stopped."), "The inference engine stopped."),
        (BlobDamaged("secret"), "The server had an error while processing your request."),
        (RuntimeError("secret"), "The server had an error while processing your request."),
    ],
)
def test_a_fault_in_mid_stream_is_an_event_and_logged_under_the_requests_id(
    service: Service, engine: EngineDouble, fault: Exception, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine.pieces = [Text("Hello"), fault]
    answer = post(service, stream=True)
    last = answer.text.split("\n\n")[-2]

    assert "[DONE]" not in answer.text
    assert "secret" not in answer.text
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"].startswith(message)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert answer.headers["x-request-id"] in record.getMessage()
    assert record.exc_info is not None


def test_the_sdk_raises_what_comes_in_mid_stream(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Text("Hello"), EngineUnavailable("The inference engine stopped.")]
    chunks = service.client.chat.completions.create(model="caesura-tiny", messages=MESSAGES, stream=True)

    with pytest.raises(openai.APIError, match=re.escape("The inference engine stopped.")):
        list(chunks)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("pieces", [[], [Text("Hello")]])
def test_an_engine_that_ends_too_early_is_a_fault_and_no_answer(
    service: Service, engine: EngineDouble, streams: bool, pieces: list[Any]
) -> None:
    engine.pieces = pieces
    answer = post(service, stream=streams)

    assert "The server had an error while processing your request." in answer.text
    assert answer.status_code == (200 if streams and pieces else 500)


def test_many_are_answered_at_once(service: Service, engine: EngineDouble) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(service), range(24)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 24


# Several answers, and how they are sampled.


def test_how_to_sample_reaches_the_engine(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Finished("stop", 5, 0, index) for index in range(3)]
    service.client.chat.completions.create(
        model="caesura-tiny",
        messages=MESSAGES,
        n=3,
        frequency_penalty=-2,
        presence_penalty=1.5,
        logit_bias={"5": -100, "2047": 0.5},
        max_tokens=2**40,
    )
    post(service)

    first, second = engine.requests
    assert (first.n, first.frequency_penalty, first.presence_penalty) == (3, -2.0, 1.5)
    assert (first.logit_bias, first.max_tokens) == ({5: -100.0, 2047: 0.5}, 2**40)
    assert (second.n, second.frequency_penalty, second.presence_penalty, second.logit_bias) == (1, 0.0, 0.0, {})


def test_of_the_two_limits_of_tokens_the_newer_wins(service: Service, engine: EngineDouble) -> None:
    post(service, max_tokens=9, max_completion_tokens=4)

    assert engine.requests[0].max_tokens == 4


def test_what_only_changes_the_speed_or_nothing_is_taken(service: Service) -> None:
    answer = post(
        service,
        modalities=["text"],
        prediction={"type": "content", "content": "Hello"},
        service_tier="flex",
        audio=None,
        web_search_options=None,
    )

    assert answer.status_code == 200


def test_a_refusal_is_text_to_the_model(service: Service, engine: EngineDouble) -> None:
    post(
        service,
        messages=[
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}, {"type": "text", "text": "Or?"}]},
            {"role": "user", "content": "Please"},
        ],
    )

    assert engine.requests[0].messages[0] == {
        "role": "assistant",
        "content": [{"type": "text", "text": "No."}, {"type": "text", "text": "Or?"}],
    }
