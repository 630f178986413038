"""Calls of functions: what is offered reaches the engine, and what it calls is told, whole and in streams."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from caesura.inference.engine import Finished, Text, ToolArguments, ToolCall
from tests.api.service import EngineDouble, Service, error_of
from tests.api.test_chat import MESSAGES, post, stream

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: dict[str, Any] = {"name": "weather", "description": "Now.", "parameters": PARAMETERS, "strict": True}
TOOL: Any = {"type": "function", "function": FUNCTION}
OTHER: Any = {"type": "function", "function": {"name": "time"}}
#: Two calls, and nothing said.
CALLS: Any = [
    ToolCall(0, "weather"),
    ToolArguments(0, '{"city": '),
    ToolArguments(0, '"Köln"}'),
    ToolCall(1, "time"),
    ToolArguments(1, "{}"),
    Finished("tool_calls", 5, 9),
]
CALL: Any = [*CALLS[:3], Finished("tool_calls", 5, 9)]


def nested(depth: int) -> dict[str, Any]:
    return {"items": nested(depth - 1)} if depth > 1 else {}


@pytest.mark.parametrize(
    ("choice", "asked"),
    [
        (None, "auto"),
        ("auto", "auto"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "time"}}, ("function", "time")),
    ],
)
def test_tools_and_the_choice_among_them_reach_the_engine(
    service: Service, engine: EngineDouble, choice: Any, asked: Any
) -> None:
    assert post(service, tools=[TOOL, OTHER], tool_choice=choice).status_code == 200

    (request,) = engine.requests
    assert request.tools == [TOOL, OTHER]
    assert (request.tool_choice, request.parallel_tool_calls) == (asked, True)


def test_whether_there_may_be_several_calls_reaches_the_engine(service: Service, engine: EngineDouble) -> None:
    post(service, tools=[TOOL], parallel_tool_calls=False)

    assert engine.requests[0].parallel_tool_calls is False


@pytest.mark.parametrize("extra", [{"tools": [TOOL], "tool_choice": "none"}, {"tools": []}, {"functions": []}])
def test_where_no_tool_may_be_called_the_engine_hears_of_none(
    service: Service, engine: EngineDouble, extra: dict[str, Any]
) -> None:
    assert post(service, **extra).status_code == 200

    assert engine.requests[0].tools is None


def test_the_sdk_reads_calls(service: Service, engine: EngineDouble) -> None:
    engine.pieces = CALLS
    completion = service.client.chat.completions.create(model="caesura-tiny", messages=MESSAGES, tools=[TOOL, OTHER])

    (choice,) = completion.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    calls: Any = choice.message.tool_calls
    assert [(call.type, call.function.name, call.function.arguments) for call in calls] == [
        ("function", "weather", '{"city": "Köln"}'),
        ("function", "time", "{}"),
    ]
    assert all(re.fullmatch(r"call_[A-Za-z0-9]{24}", call.id) for call in calls)
    assert calls[0].id != calls[1].id


def test_an_answer_may_say_something_beside_its_calls(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Text("Let me see."), *CALL]
    message = post(service, tools=[TOOL]).json()["choices"][0]["message"]

    assert message["content"] == "Let me see."
    assert len(message["tool_calls"]) == 1


def test_an_answer_without_calls_has_no_key_for_them(service: Service) -> None:
    message = post(service, tools=[TOOL]).json()["choices"][0]["message"]

    assert message.keys() == {"role", "content", "refusal", "annotations"}


def test_calls_come_in_a_stream_in_openais_order(service: Service, engine: EngineDouble) -> None:
    engine.pieces = CALLS
    *chunks, done = stream(service, tools=[TOOL, OTHER])

    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    ids = [call.pop("id") for delta in deltas for call in delta.get("tool_calls", []) if "id" in call]
    assert len(set(ids)) == 2
    assert all(id.startswith("call_") for id in ids)
    assert deltas == [
        {"role": "assistant", "content": "", "refusal": None},
        {"tool_calls": [{"index": 0, "type": "function", "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Köln"}'}}]},
        {"tool_calls": [{"index": 1, "type": "function", "function": {"name": "time", "arguments": ""}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 6 + ["tool_calls"]


def test_the_sdks_helper_puts_the_calls_of_a_stream_together(service: Service, engine: EngineDouble) -> None:
    engine.pieces = CALLS
    with service.client.chat.completions.stream(model="caesura-tiny", messages=MESSAGES, tools=[TOOL, OTHER]) as events:
        message: Any = events.get_final_completion().choices[0].message

    assert [call.function.arguments for call in message.tool_calls] == ['{"city": "Köln"}', "{}"]


def test_calls_of_several_answers_go_to_their_own(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [
        ToolCall(0, "weather", 1),
        ToolCall(0, "time", 0),
        ToolArguments(0, '{"city": "X"}', 1),
        ToolArguments(0, "{}", 0),
        Finished("tool_calls", 5, 1, 0),
        Finished("tool_calls", 5, 1, 1),
    ]
    choices = post(service, tools=[TOOL, OTHER], n=2).json()["choices"]

    calls = [choice["message"]["tool_calls"][0]["function"] for choice in choices]
    assert calls == [{"name": "time", "arguments": "{}"}, {"name": "weather", "arguments": '{"city": "X"}'}]


def test_a_conversation_with_calls_reaches_the_engine_as_it_was_told(service: Service, engine: EngineDouble) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
    messages = [
        {"role": "user", "content": "And in Köln?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
        {"role": "assistant", "content": "It rains.", "function_call": {"name": "time", "arguments": "{}"}},
        {"role": "function", "name": "time", "content": "12:00"},
    ]
    assert post(service, messages=messages).status_code == 200

    assert engine.requests[0].messages == messages


def test_an_answer_with_calls_can_be_sent_back_as_the_sdk_gives_it(service: Service, engine: EngineDouble) -> None:
    engine.next_pieces = [CALL]
    create = service.client.chat.completions.create
    message = create(model="caesura-tiny", messages=MESSAGES, tools=[TOOL]).choices[0].message
    assert message.tool_calls is not None
    answer: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Rain."}
    create(model="caesura-tiny", messages=[*MESSAGES, message, answer], tools=[TOOL])

    told = engine.requests[1].messages[1]
    assert told["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Köln"}'}


class Weather(BaseModel):
    city: str


def test_the_sdk_parses_arguments_into_the_class_that_it_was_given(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [ToolCall(0, "Weather"), ToolArguments(0, '{"city": "Bonn"}'), Finished("tool_calls", 5, 4)]
    message = (
        service.client.chat.completions.parse(
            model="caesura-tiny", messages=MESSAGES, tools=[openai.pydantic_function_tool(Weather)]
        )
        .choices[0]
        .message
    )

    assert message.tool_calls is not None
    assert message.tool_calls[0].function.parsed_arguments == Weather(city="Bonn")


# The older form.


@pytest.mark.parametrize(
    ("choice", "asked"), [(None, "auto"), ("auto", "auto"), ({"name": "weather"}, ("function", "weather"))]
)
def test_functions_are_tools_of_which_one_is_called(
    service: Service, engine: EngineDouble, choice: Any, asked: Any
) -> None:
    assert post(service, functions=[FUNCTION], function_call=choice).status_code == 200

    (request,) = engine.requests
    assert request.tools == [TOOL]
    assert (request.tool_choice, request.parallel_tool_calls) == (asked, False)


def test_no_function_is_offered_where_none_may_be_called(service: Service, engine: EngineDouble) -> None:
    post(service, functions=[FUNCTION], function_call="none")

    assert engine.requests[0].tools is None


def test_a_functions_call_is_told_in_the_older_form(service: Service, engine: EngineDouble) -> None:
    engine.pieces = CALL
    completion = service.client.chat.completions.create(
        model="caesura-tiny", messages=MESSAGES, functions=[{"name": "weather", "parameters": PARAMETERS}]
    )

    (choice,) = completion.choices
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("function_call", None, None)
    assert choice.message.function_call is not None
    assert choice.message.function_call.name == "weather"
    assert json.loads(choice.message.function_call.arguments) == {"city": "Köln"}


def test_a_functions_call_comes_in_a_stream_in_the_older_form(service: Service, engine: EngineDouble) -> None:
    engine.pieces = CALL
    chunks = [chunk["choices"][0] for chunk in stream(service, functions=[FUNCTION])[:-1]]

    assert [chunk["delta"] for chunk in chunks[1:]] == [
        {"function_call": {"name": "weather", "arguments": ""}},
        {"function_call": {"arguments": '{"city": '}},
        {"function_call": {"arguments": '"Köln"}'}},
        {},
    ]
    assert chunks[-1]["finish_reason"] == "function_call"


# Faults.


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("extra", "param", "code", "text"),
    [
        ({"tools": [{}]}, "tools[0].type", "missing_required_parameter", "Missing required parameter: 'tools[0].type'"),
        (
            {"tools": [{"type": "custom", "custom": {"name": "x"}}]},
            "tools[0].type",
            "invalid_value",
            "Invalid value: 'custom'. Supported values are: 'function'.",
        ),
        (tool(), "tools[0].function.name", "missing_required_parameter", "Missing required parameter: 'tools[0].func"),
        *(
            (
                tool(name=name),
                "tools[0].function.name",
                "invalid_value",
                "Invalid value for 'tools[0].function.name': ",
            )
            for name in ("", "a b", "ü", "x" * 65)
        ),
        (
            tool(name="f", parameters=[]),
            "tools[0].function.parameters",
            "invalid_type",
            "Invalid type for 'tools[0].function.parameters': expected an object, but got an array instead.",
        ),
        (
            tool(name="f", parameters=nested(101)),
            "tools[0].function.parameters",
            "invalid_value",
            "Invalid value for 'tools[0].function.parameters': a schema may hold 1000 objects, nested 100 deep",
        ),
        (
            {"tools": [OTHER] * 129},
            "tools",
            "array_above_max_length",
            "Invalid 'tools': array too long. Expected an array with maximum length 128",
        ),
        (
            {"tools": [TOOL, OTHER, TOOL]},
            "tools[2].function.name",
            "invalid_value",
            "Invalid 'tools[2].function.name': there is another function 'weather' before it.",
        ),
        (
            {"functions": [FUNCTION, FUNCTION]},
            "functions[1].name",
            "invalid_value",
            "Invalid 'functions[1].name': there is another function 'weather' before it.",
        ),
        *(
            (
                {"tool_choice": choice},
                "tool_choice",
                None,
                "The 'tool_choice' parameter is only allowed when 'tools' are",
            )
            for choice in ("none", "auto", "required", {"type": "function", "function": {"name": "f"}})
        ),
        (
            {"functions": [FUNCTION], "tool_choice": "auto"},
            "tool_choice",
            None,
            "The 'tool_choice' parameter is only allowed when 'tools' are given.",
        ),
        (
            {"tools": [TOOL], "function_call": "auto"},
            "function_call",
            None,
            "The 'function_call' parameter is only allowed when 'functions' are given.",
        ),
        (
            {"tools": [TOOL], "functions": [FUNCTION]},
            "functions",
            None,
            "The 'functions' parameter is the older form of 'tools': send one of the two.",
        ),
        (
            {"tools": [TOOL, OTHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice.function.name",
            "invalid_value",
            "Invalid value: 'x'. Supported values are the names in 'tools': 'weather' and 'time'.",
        ),
        (
            {"functions": [FUNCTION], "function_call": {"name": "x"}},
            "function_call.name",
            "invalid_value",
            "Invalid value: 'x'. Supported values are the names in 'functions': 'weather'.",
        ),
        (
            {"tools": [TOOL], "tool_choice": "any"},
            "tool_choice",
            "invalid_value",
            "Invalid value: 'any'. Supported values are: 'none', 'auto', and 'required'.",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}},
            "tool_choice.type",
            "invalid_value",
            "Invalid value: 'allowed_tools'. Supported values are: 'function'.",
        ),
    ],
)
def test_faulty_tools_are_a_400_that_names_the_parameter(
    idle_service: Service, engine: EngineDouble, extra: dict[str, Any], param: str, code: str | None, text: str
) -> None:
    answer = post(idle_service, **extra)

    assert answer.status_code == 400
    error = error_of(answer)
    assert error["message"].startswith(text), error["message"]
    assert (error["param"], error["code"]) == (param, code)
    assert engine.requests == []
