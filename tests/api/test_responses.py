"""Whole responses: what is asked, what is answered, what is refused."""

from __future__ import annotations

import json
import re
import socket
from typing import Any, Literal

import httpx
import pytest
from pydantic import BaseModel

from caesura.errors import BlobDamaged, EngineUnavailable, InvalidRequest
from caesura.inference.engine import ChatRequest, Finished, Piece, Text, TokenLogprob, ToolArguments, ToolCall
from tests.api.service import KEY, PATIENCE_S, EngineDouble, Service, Waiting, assert_shape, error_of

BODY = {"model": "caesura-tiny", "input": "Hi"}
NoneType = type(None)
USAGE = {
    "input_tokens": int,
    "input_tokens_details": {"cached_tokens": int, "cache_write_tokens": int},
    "output_tokens": int,
    "output_tokens_details": {"reasoning_tokens": int},
    "total_tokens": int,
}
MESSAGE = {
    "id": str,
    "type": str,
    "status": str,
    "role": str,
    "content": [{"type": str, "text": str, "annotations": list, "logprobs": list}],
}
RESPONSE = {
    "id": str,
    "object": str,
    "created_at": int,
    "status": str,
    "completed_at": int,
    "background": bool,
    "error": NoneType,
    "incomplete_details": NoneType,
    "instructions": NoneType,
    "max_output_tokens": NoneType,
    "max_tool_calls": NoneType,
    "model": str,
    "output": [MESSAGE],
    "parallel_tool_calls": bool,
    "previous_response_id": NoneType,
    "prompt_cache_key": NoneType,
    "reasoning": {"effort": NoneType, "summary": NoneType},
    "safety_identifier": NoneType,
    "service_tier": str,
    "store": bool,
    "temperature": float,
    "text": {"format": {"type": str}},
    "tool_choice": str,
    "tools": list,
    "top_logprobs": int,
    "top_p": float,
    "truncation": str,
    "usage": USAGE,
    "metadata": NoneType,
}
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CALLS: list[Piece] = [
    Text("Let me look."),
    ToolCall(0, "get_weather"),
    ToolArguments(0, '{"city":'),
    ToolArguments(0, ' "Oslo"}'),
    ToolCall(1, "get_weather"),
    ToolArguments(1, '{"city": "Rome"}'),
    Finished("tool_calls", 9, 8),
]


def post(service: Service, **extra: Any) -> httpx.Response:
    # As ASCII: what UTF-8 cannot hold is sent too.
    content, headers = json.dumps({**BODY, **extra}, ensure_ascii=True), {"content-type": "application/json"}
    return service.http.post("/v1/responses", content=content, headers=headers)


def request_of(service: Service, **extra: Any) -> ChatRequest:
    """What reaches the engine."""
    answer = post(service, **extra)
    assert answer.status_code == 200, answer.text
    return service.engine.requests[-1]


def test_a_response_is_told_in_openais_form(service: Service) -> None:
    response = post(service).json()

    assert_shape(response, RESPONSE)
    assert re.fullmatch(r"resp_[A-Za-z0-9]{24}", response["id"])
    assert (response["object"], response["status"], response["model"]) == ("response", "completed", "caesura-tiny")
    (message,) = response["output"]
    assert message["id"].startswith("msg_")
    assert (message["type"], message["role"], message["status"]) == ("message", "assistant", "completed")
    assert message["content"] == [{"type": "output_text", "text": "Hello world", "annotations": [], "logprobs": []}]
    usage = response["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (5, 2, 7)


def test_the_values_that_apply_are_told(service: Service) -> None:
    defaults = post(service).json()
    asked: dict[str, Any] = {
        "instructions": "Be brief.",
        "max_output_tokens": 16,
        "max_tool_calls": 3,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_logprobs": 2,
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "name": "get_weather"},
        "parallel_tool_calls": False,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
        "store": False,
        "metadata": {"k": "v"},
        "user": "me",
        "safety_identifier": "s",
        "prompt_cache_key": "p",
    }
    response = post(service, **asked).json()

    assert (defaults["temperature"], defaults["top_p"], defaults["tool_choice"]) == (1.0, 1.0, "auto")
    assert (defaults["parallel_tool_calls"], defaults["store"], defaults["tools"]) == (True, True, [])
    assert {name: response[name] for name in asked} == asked


def test_what_is_asked_reaches_the_engine(service: Service) -> None:
    request = request_of(
        service,
        instructions="Be brief.",
        max_output_tokens=16,
        temperature=0,
        top_p=0.5,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
    )

    assert (request.base, request.adapter, request.n) == ("caesura-tiny", None, 1)
    assert request.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert (request.max_tokens, request.temperature, request.top_p) == (16, 0.0, 0.5)
    function = {key: value for key, value in WEATHER.items() if key != "type"}
    assert request.tools == [{"type": "function", "function": function}]
    assert (request.tool_choice, request.parallel_tool_calls) == ("required", False)
    assert (request.json_schema, request.top_logprobs) == (None, None)


def test_what_is_not_said_has_openais_defaults(service: Service) -> None:
    nulls = ("temperature", "top_p", "max_output_tokens", "tools", "tool_choice", "text", "instructions", "stream")
    request = request_of(service, **dict.fromkeys(nulls))

    assert request == ChatRequest("caesura-tiny", None, [{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    ("choice", "tools", "asked"),
    [
        ("auto", True, "auto"),
        ("required", True, "required"),
        ({"type": "function", "name": "get_weather"}, True, ("function", "get_weather")),
        ("none", False, "auto"),
    ],
)
def test_a_choice_of_tools_reaches_the_engine(service: Service, choice: Any, tools: bool, asked: Any) -> None:
    request = request_of(service, tools=[WEATHER], tool_choice=choice)

    assert (request.tools is not None, request.tool_choice) == (tools, asked)


@pytest.mark.parametrize(
    ("format", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "name": "n", "schema": {"type": "integer"}}, {"type": "integer"}),
    ],
)
def test_a_format_reaches_the_engine_as_its_schema(service: Service, format: Any, schema: Any) -> None:
    assert request_of(service, text={"format": format, "verbosity": "low"}).json_schema == schema


def test_items_become_messages(service: Service) -> None:
    request = request_of(
        service,
        instructions="First.",
        input=[
            {"role": "developer", "content": "Second."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}] * 2},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "xyz"},
            {"id": "msg_1", "status": "completed", "role": "assistant", "content": "I look."},
            {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "call_2", "name": "g", "arguments": "{"},
            {"type": "function_call_output", "call_id": "call_2", "output": "two"},
            {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "one"}]},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "user", "content": "Why?"},
            {"type": "function_call", "call_id": "call_3", "name": "f", "arguments": "{}"},
        ],
    )

    def call(number: int, name: str, arguments: str) -> dict[str, Any]:
        return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}

    assert request.messages == [
        {"role": "system", "content": "First."},
        {"role": "developer", "content": "Second."},
        {"role": "user", "content": "aa"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call(1, "f", "{}"), call(2, "g", "{")]},
        {"role": "tool", "tool_call_id": "call_2", "content": "two"},
        {"role": "tool", "tool_call_id": "call_1", "content": "one"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "tool_calls": [call(3, "f", "{}")]},
    ]


def test_what_is_said_before_the_calls_is_an_item_of_its_own(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [*CALLS]
    response = post(service, tools=[WEATHER]).json()

    message, first, second = response["output"]
    assert message["content"][0]["text"] == "Let me look."
    assert first["id"].startswith("fc_")
    assert first["call_id"].startswith("call_")
    assert first["call_id"] != second["call_id"]
    expected = {"type": "function_call", "status": "completed", "name": "get_weather"}
    for call, city in ((first, "Oslo"), (second, "Rome")):
        assert call == expected | {"id": call["id"], "call_id": call["call_id"], "arguments": f'{{"city": "{city}"}}'}
    assert response["status"] == "completed"


@pytest.mark.parametrize(
    "pieces",
    [
        [Text("Hel"), Finished("length", 5, 1)],
        [Text("Look"), ToolCall(0, "f"), ToolArguments(0, "{"), Finished("length", 5, 2)],
    ],
)
def test_an_answer_that_is_cut_off_is_incomplete(service: Service, engine: EngineDouble, pieces: list[Piece]) -> None:
    engine.pieces = [*pieces]
    response = post(service).json()

    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (response["completed_at"], response["error"]) == (None, None)
    *whole, cut = response["output"]
    assert cut["status"] == "incomplete"
    assert {item["status"] for item in whole} <= {"completed"}


def test_an_answer_of_nothing_has_an_empty_text(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Text(""), Finished("stop", 3, 1)]
    response = service.client.responses.create(model="caesura-tiny", input="Hi")

    assert response.output_text == ""
    assert [item.type for item in response.output] == ["message"]


def test_log_probabilities_come_where_they_are_included(service: Service, engine: EngineDouble) -> None:
    likely = TokenLogprob("Ho", -1.5, (72, 111))
    token = TokenLogprob("Hi", -0.5, (72, 105), (TokenLogprob("Hi", -0.5, (72, 105)), likely))
    engine.pieces = [Text("Hi", logprobs=(token,)), Finished("stop", 1, 1)]
    response = post(service, include=["message.output_text.logprobs"], top_logprobs=2).json()
    post(service, include=["message.output_text.logprobs"])
    post(service, top_logprobs=2, include=["reasoning.encrypted_content"])

    assert response["output"][0]["content"][0]["logprobs"] == [
        {
            "token": "Hi",
            "logprob": -0.5,
            "bytes": [72, 105],
            "top_logprobs": [
                {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]},
                {"token": "Ho", "logprob": -1.5, "bytes": [72, 111]},
            ],
        }
    ]
    assert [request.top_logprobs for request in engine.requests] == [2, 0, None]


@pytest.mark.parametrize("which", ["base", "alias", "tuned"])
def test_every_model_answers(service: Service, engine: EngineDouble, which: str) -> None:
    name = {"base": "caesura-tiny", "alias": "gpt-4o-mini"}.get(which)
    adapter = None
    if name is None:
        job, lease = service.start_job()
        service.finish(lease, 1)
        name = job.model_name
        model = service.store.models.find(name)
        assert model is not None
        adapter = model.adapter
    response = service.client.responses.create(model=name, input="Hi")

    assert response.model == (name if which == "tuned" else "caesura-tiny")
    assert (engine.requests[0].base, engine.requests[0].adapter) == ("caesura-tiny", adapter)


def test_an_unknown_model_is_not_found(service: Service) -> None:
    answer = post(service, model="gpt-99")

    assert answer.status_code == 404
    assert error_of(answer)["code"] == "model_not_found"


class Review(BaseModel):
    verdict: Literal["good", "bad"]


def test_the_sdk_parses_an_answer_of_a_schema(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Text('{"verdict":'), Text(' "good"}'), Finished("stop", 1, 3)]
    response = service.client.responses.parse(model="caesura-tiny", input="Review it.", text_format=Review)

    assert response.output_parsed == Review(verdict="good")
    assert engine.requests[0].json_schema["properties"]["verdict"]["enum"] == ["good", "bad"]


IMAGE = {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "auto"}
FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"colour": "red"}, "colour", "unknown_parameter"),
    ({"input": None}, "input", "missing_required_parameter"),
    ({"model": None}, "model", "missing_required_parameter"),
    ({"input": []}, "input", "empty_array"),
    ({"input": 7}, "input", "invalid_type"),
    ({"input": "\ud800"}, "input", "invalid_value"),
    ({"input": [{"role": "wizard", "content": "Hi"}]}, "input[0].role", "invalid_value"),
    ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
    ({"input": [{"role": "user", "content": [IMAGE]}]}, "input[0].content[0].type", "invalid_value"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type", "invalid_value"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type", "invalid_value"),
    ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type", "invalid_value"),
    (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f"}]},
        "input[0].arguments",
        "missing_required_parameter",
    ),
    (
        {"input": [{"type": "function_call_output", "call_id": "c", "output": [IMAGE]}]},
        "input[0].output[0].type",
        "invalid_value",
    ),
    ({"input": [{"type": "function_call_output", "call_id": "call_9", "output": "x"}]}, "input", ""),
    ({"input": [{"id": "msg_1", "role": "user", "content": "x"}] * 2}, "input", ""),
    ({"max_output_tokens": 15}, "max_output_tokens", "integer_below_min_value"),
    ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
    ({"top_p": -0.1}, "top_p", "decimal_below_min_value"),
    ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"include": ["everything"]}, "include[0]", "invalid_value"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
    ({"tools": [{"name": "f"}]}, "tools[0].type", "missing_required_parameter"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "invalid_value"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name", "missing_required_parameter"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name", "invalid_value"),
    ({"tools": [WEATHER | {"parameters": {"title": "\ud800"}}]}, "tools[0].parameters", "invalid_value"),
    ({"tools": [WEATHER | {"parameters": {"default": float("nan")}}]}, "tools[0].parameters", "invalid_value"),
    ({"tool_choice": "required"}, "tool_choice", ""),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name", "invalid_value"),
    ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "tool_choice.type", "invalid_value"),
    ({"tool_choice": "always"}, "tool_choice", "invalid_value"),
    ({"text": {"format": {"type": "yaml"}}}, "text.format.type", "invalid_value"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "missing_required_parameter"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name", "missing_required_parameter"),
    ({"truncation": "auto"}, "truncation", "invalid_value"),
    ({"background": True}, "background", "invalid_value"),
    ({"conversation": "conv_1"}, "conversation", "invalid_value"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "invalid_value"),
    ({"metadata": {"k": 1}}, "metadata.k", "invalid_type"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options", ""),
    ({"previous_response_id": "resp_x"}, "previous_response_id", "previous_response_not_found"),
]


@pytest.mark.parametrize(("extra", "param", "code"), FAULTS, ids=[f"{param} {code}" for _, param, code in FAULTS])
def test_what_cannot_be_done_is_refused_by_its_path(
    idle_service: Service, extra: dict[str, Any], param: str, code: str
) -> None:
    answer = post(idle_service, **extra)

    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["param"], error["code"] or "") == (param, code)
    assert idle_service.engine.requests == []


def test_what_changes_nothing_is_taken(service: Service) -> None:
    answer = post(
        service,
        reasoning={"effort": "low", "summary": "auto"},
        truncation="disabled",
        background=False,
        service_tier="auto",
        prompt_cache_retention="24h",
        prompt_cache_options={"mode": "implicit"},
        max_tool_calls=1,
        text={"verbosity": "high"},
        include=["file_search_call.results"],
    )

    assert answer.status_code == 200
    assert answer.json()["reasoning"] == {"effort": None, "summary": None}


@pytest.mark.parametrize(
    ("told", "param", "message"),
    [
        ("messages", "input", "It leaves no room."),
        ("tools[0].function.parameters", "tools[0].parameters", "No schema."),
        ("response_format.json_schema.schema", "text.format.schema", "Invalid schema for 'text.format'."),
        ("response_format", "text.format", "Leave 'text.format' out."),
        ("model", "model", "It cannot be loaded."),
    ],
)
def test_what_the_engine_finds_wrong_is_told_in_the_words_of_responses(
    service: Service, engine: EngineDouble, told: str, param: str, message: str
) -> None:
    engine.pieces = [InvalidRequest(message.replace("text.format", "response_format"), param=told, code="c")]
    error = error_of(post(service))

    assert (error["message"], error["param"], error["code"]) == (message, param, "c")


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        (EngineUnavailable("The inference engine stopped."), 503, "The inference engine stopped."),
        (BlobDamaged("secret"), 500, "The server had an error"),
        (RuntimeError("secret"), 500, "The server had an error"),
    ],
)
def test_a_fault_in_the_middle_of_a_whole_answer_has_its_status(
    service: Service, engine: EngineDouble, fault: Exception, status: int, message: str
) -> None:
    engine.pieces = [Text("Hel"), fault]
    answer = post(service)

    assert answer.status_code == status
    assert error_of(answer)["message"].startswith(message)
    assert engine.is_done.wait(PATIENCE_S)


def test_an_answer_that_the_engine_does_not_end_is_a_fault(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Text("Hel")]

    assert post(service).status_code == 500


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_who_does_not_wait_frees_the_engine(service: Service, engine: EngineDouble, streams: bool) -> None:
    engine.pieces = [Waiting()]
    url, body = service.http.base_url, json.dumps({**BODY, "stream": streams})
    head = (
        f"POST /v1/responses HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port)) as impatient:
        impatient.sendall((head + body).encode())
        assert engine.waits.wait(PATIENCE_S)

    assert engine.is_done.wait(PATIENCE_S)


def test_answers_beyond_the_limit_are_refused(service: Service, engine: EngineDouble) -> None:
    limit = service.server.settings.max_answers
    service.app.state.admission.num_taken = limit
    answer = post(service)
    service.app.state.admission.num_taken = 0

    assert answer.status_code == 429
    assert error_of(answer)["code"] == "rate_limit_exceeded"
    assert post(service).headers["x-ratelimit-limit-requests"] == str(limit)
    assert service.app.state.admission.num_taken == 0
