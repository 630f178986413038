"""Responses, as OpenAI's official client for Python sends and reads them."""

from __future__ import annotations

from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel

from caesura.settings import EMBEDDED_BASE
from tests.clients.conftest import ASKED, QUESTION

REQUEST: Any = {"model": EMBEDDED_BASE, "input": QUESTION, "temperature": 0, "max_output_tokens": 100}
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CALLING: Any = REQUEST | {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}


class Review(BaseModel):
    verdict: Literal["good", "bad"]
    reasons: list[Literal["rhyme", "rhythm"]]


class Arguments(BaseModel):
    city: Literal["Paris", "Rome"]


def test_a_response_has_the_text_of_a_chat_and_can_be_retrieved_until_it_is_deleted(client: OpenAI) -> None:
    response = client.responses.create(**REQUEST)

    assert response.id.startswith("resp_")
    assert (response.object, response.status, response.error) == ("response", "completed", None)
    assert response.output_text == client.chat.completions.create(**ASKED).choices[0].message.content
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert client.responses.retrieve(response.id).output_text == response.output_text
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_a_response_that_is_cut_off_is_incomplete(client: OpenAI) -> None:
    response = client.responses.create(**REQUEST | {"input": "Tell me a long story.", "max_output_tokens": 16})

    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_a_response_goes_on_from_the_previous_one(client: OpenAI) -> None:
    first = client.responses.create(**REQUEST)
    told: Any = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Why?"},
    ]

    second = client.responses.create(**REQUEST | {"input": "Why?"}, previous_response_id=first.id)
    same = client.responses.create(**REQUEST | {"input": told})

    assert second.previous_response_id == first.id
    assert second.output_text == same.output_text
    assert second.usage is not None
    assert same.usage is not None
    assert second.usage.input_tokens == same.usage.input_tokens


def test_the_events_of_a_stream_come_in_order_and_add_up_to_the_response(client: OpenAI) -> None:
    whole = client.responses.create(**REQUEST)

    events = list(client.responses.create(**REQUEST, stream=True))

    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta" for _ in deltas],
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert len(deltas) > 3
    assert "".join(deltas) == whole.output_text


def test_the_stream_helper_puts_the_response_together(client: OpenAI) -> None:
    with client.responses.stream(**REQUEST) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()

    assert response.status == "completed"
    assert response.output_text == snapshots[-1] == client.responses.create(**REQUEST).output_text


def test_a_response_and_a_stream_are_parsed_into_the_class_that_they_were_asked_for(client: OpenAI) -> None:
    whole = client.responses.parse(**REQUEST, text_format=Review)
    with client.responses.stream(**REQUEST, text_format=Review) as stream:
        streamed = stream.get_final_response()

    assert isinstance(whole.output_parsed, Review)
    assert streamed.output_parsed == whole.output_parsed


def test_a_function_is_called_and_what_it_returned_goes_back_to_the_model(client: OpenAI) -> None:
    called = client.responses.create(**CALLING)
    (call,) = called.output
    assert isinstance(call, ResponseFunctionToolCall)
    Arguments.model_validate_json(call.arguments)
    returned: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]

    without = client.responses.create(**CALLING | {"tool_choice": "none"})
    answer = client.responses.create(
        **CALLING | {"input": returned, "tool_choice": "none"}, previous_response_id=called.id
    )

    assert call.name == "get_weather"
    assert call.call_id.startswith("call_")
    assert answer.output_text
    assert without.usage is not None
    assert answer.usage is not None
    assert answer.usage.input_tokens > without.usage.input_tokens


def test_the_stream_helper_puts_a_call_together(client: OpenAI) -> None:
    with client.responses.stream(**CALLING) as stream:
        (done,) = [event for event in stream if event.type == "response.function_call_arguments.done"]
        (call,) = stream.get_final_response().output

    assert isinstance(call, ResponseFunctionToolCall)
    assert done.arguments == call.arguments
    Arguments.model_validate_json(call.arguments)


def test_what_is_too_long_is_raised_in_its_class(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(**REQUEST | {"input": "caesura " * 5000})

    assert raised.value.code == "context_length_exceeded"
