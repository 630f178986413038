"""Faulty chats: each is a 400 that names the parameter, and never reaches the engine."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.service import EngineDouble, Service, error_of
from tests.api.test_chat import post


def message(**values: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}, values]}


@pytest.mark.parametrize(
    ("extra", "param", "code", "text"),
    [
        ({"model": None}, "model", "missing_required_parameter", "Missing required parameter: 'model'."),
        ({"messages": None}, "messages", "missing_required_parameter", "Missing required parameter: 'messages'."),
        (
            {"messages": []},
            "messages",
            "empty_array",
            "Invalid 'messages': array too short. Expected an array with minimum length 1, "
            "but got an array with length 0 instead.",
        ),
        (
            {"messages": "Hi"},
            "messages",
            "invalid_type",
            "Invalid type for 'messages': expected an array, but got a st",
        ),
        (
            {"messages": ["Hi"]},
            "messages[0]",
            "invalid_type",
            "Invalid type for 'messages[0]': expected an object, but",
        ),
        (
            message(content="x"),
            "messages[1].role",
            "missing_required_parameter",
            "Missing required parameter: 'messages[1].role'.",
        ),
        (
            message(role="robot", content="x"),
            "messages[1].role",
            "invalid_value",
            "Invalid value: 'robot'. Supported values are: "
            "'system', 'developer', 'user', 'assistant', 'tool', and 'function'.",
        ),
        (
            message(role="user"),
            "messages[1].content",
            "missing_required_parameter",
            "Missing required parameter: 'messages[1].content'.",
        ),
        (
            message(role="user", content=5),
            "messages[1].content",
            "invalid_type",
            "Invalid type for 'messages[1].content': expected a string, but got an integer instead.",
        ),
        (
            message(role="assistant", content=[{"type": "text"}]),
            "messages[1].content[0].text",
            "missing_required_parameter",
            "Missing required parameter: 'messages[1].content[0].text'.",
        ),
        (
            message(role="user", content=[{"type": "image_url", "image_url": {"url": "x"}}]),
            "messages[1].content[0].type",
            "invalid_value",
            "Invalid value: 'image_url'. Supported values are: 'text'.",
        ),
        (
            {"temperature": 2.5},
            "temperature",
            "decimal_above_max_value",
            "Invalid 'temperature': decimal above maximum",
        ),
        (
            {"temperature": -1},
            "temperature",
            "decimal_below_min_value",
            "Invalid 'temperature': decimal below minimum ",
        ),
        (
            {"temperature": "hot"},
            "temperature",
            "invalid_type",
            "Invalid type for 'temperature': expected a number, but",
        ),
        (
            {"temperature": True},
            "temperature",
            "invalid_type",
            "Invalid type for 'temperature': expected a number, but",
        ),
        ({"top_p": 1.1}, "top_p", "decimal_above_max_value", "Invalid 'top_p': decimal above maximum value."),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value", "Invalid 'max_tokens': integer below minimum"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "integer_below_min_value", "Invalid 'max_completion_t"),
        ({"n": 0}, "n", "integer_below_min_value", "Invalid 'n': integer below minimum value."),
        (
            {"n": 129},
            "n",
            "integer_above_max_value",
            "Invalid 'n': integer above maximum value. Expected a value <= 128",
        ),
        ({"n": 2**70}, "n", "integer_above_max_value", "Invalid 'n': integer above maximum value."),
        ({"n": 1.5}, "n", "invalid_type", "Invalid type for 'n': expected an integer, but got a decimal instead."),
        ({"seed": 2**63}, "seed", "integer_above_max_value", "Invalid 'seed': integer above maximum value."),
        (
            {"stop": 5},
            "stop",
            "invalid_type",
            "Invalid type for 'stop': expected a string, but got an integer instead.",
        ),
        (
            {"stop": ["a", "b", "c", "d", "e"]},
            "stop",
            "array_above_max_length",
            "Invalid 'stop': array too long. Expected an array with maximum length 4, "
            "but got an array with length 5 instead.",
        ),
        ({"stop": [1]}, "stop[0]", "invalid_type", "Invalid type for 'stop[0]': expected a string, but got an integer"),
        (
            {"stream": "yes"},
            "stream",
            "invalid_type",
            "Invalid type for 'stream': expected a boolean, but got a string",
        ),
        (
            {"stream_options": {"include_usage": True}},
            "stream_options",
            None,
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
        ),
        (
            {"logprobs": 1},
            "logprobs",
            "invalid_type",
            "Invalid type for 'logprobs': expected a boolean, but got an int",
        ),
        (
            {"top_logprobs": 2},
            "top_logprobs",
            None,
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
        ),
        ({"logprobs": False, "top_logprobs": 0}, "top_logprobs", None, "The 'top_logprobs' parameter is only allowed"),
        (
            {"logprobs": True, "top_logprobs": 21},
            "top_logprobs",
            "integer_above_max_value",
            "Invalid 'top_logprobs': integer above maximum value. Expected a value <= 20, but got 21 instead.",
        ),
        (
            {"logit_bias": {"5": 101}},
            "logit_bias.5",
            "decimal_above_max_value",
            "Invalid 'logit_bias.5': decimal above maximum value. Expected a value <= 100, but got 101 instead.",
        ),
        ({"logit_bias": {"5": "x"}}, "logit_bias.5", "invalid_type", "Invalid type for 'logit_bias.5': expected a num"),
        *(
            ({"logit_bias": {key: 1}}, f"logit_bias.{key}", "invalid_value", f"Invalid value for 'logit_bias.{key}': ")
            for key in ("the", "-1", "1.5", "1234567890")
        ),
        ({"logit_bias": [5]}, "logit_bias", "invalid_type", "Invalid type for 'logit_bias': expected an object, but"),
        (
            {"modalities": ["text", "audio"]},
            "modalities[1]",
            "invalid_value",
            "Invalid value: 'audio'. Supported values are: 'text'.",
        ),
        *(
            ({name: {}}, name, "invalid_value", f"Invalid value for '{name}': this server does not offer it.")
            for name in ("audio", "web_search_options")
        ),
        ({"moderation": {"model": "m"}}, "moderation", "unknown_parameter", "Unknown parameter: 'moderation'."),
        (
            message(role="tool", content="x"),
            "messages[1].tool_call_id",
            "missing_required_parameter",
            "Missing required parameter: 'messages[1].tool_call_id'.",
        ),
        (
            message(role="tool", tool_call_id="call_1"),
            "messages[1].content",
            "missing_required_parameter",
            "Missing required parameter: 'messages[1].content'.",
        ),
        (
            message(role="function", content="x"),
            "messages[1].name",
            "missing_required_parameter",
            "Missing required parameter: 'messages[1].name'.",
        ),
        (
            message(role="assistant", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": "{}"}}]),
            "messages[1].tool_calls[0].id",
            "missing_required_parameter",
            "Missing required parameter: 'messages[1].tool_calls[0].id'.",
        ),
        (
            message(role="assistant", tool_calls=[{"id": "1", "type": "custom"}]),
            "messages[1].tool_calls[0].type",
            "invalid_value",
            "Invalid value: 'custom'. Supported values are: 'function'.",
        ),
        (
            message(
                role="assistant",
                tool_calls=[{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
            ),
            "messages[1].tool_calls[0].function.arguments",
            "invalid_type",
            "Invalid type for 'messages[1].tool_calls[0].function.arguments': expected a string, but got an object",
        ),
        (
            message(role="assistant", content=[{"type": "image_url"}]),
            "messages[1].content[0].type",
            "invalid_value",
            "Invalid value: 'image_url'. Supported values are: 'text' and 'refusal'.",
        ),
        (
            {"response_format": {"type": "xml"}},
            "response_format.type",
            "invalid_value",
            "Invalid value: 'xml'. Supported values are: 'text', 'json_object', and 'json_schema'.",
        ),
        ({"presence_penalty": 2.5}, "presence_penalty", "decimal_above_max_value", "Invalid 'presence_penalty': decim"),
        (
            {"frequency_penalty": -3},
            "frequency_penalty",
            "decimal_below_min_value",
            "Invalid 'frequency_penalty': decimal below minimum value. Expected a value >= -2, but got -3 instead.",
        ),
        ({"model": "\ud800"}, "model", "invalid_value", "Invalid value for 'model': the string is not valid Unicode."),
        (
            message(role="user", content="\ud800"),
            "messages[1].content",
            "invalid_value",
            "Invalid value for 'messages[",
        ),
        ({"colour": "red"}, "colour", "unknown_parameter", "Unknown parameter: 'colour'."),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_faulty_body_is_a_400_that_names_the_parameter(
    idle_service: Service, engine: EngineDouble, extra: dict[str, Any], param: str, code: str | None, text: str
) -> None:
    answer = post(idle_service, **extra)

    assert answer.status_code == 400
    error = error_of(answer)
    assert error["message"].startswith(text), error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert engine.requests == []
