"""Chat Completions, as OpenAI's official client for Python sends and reads them."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletionMessageFunctionToolCall
from pydantic import BaseModel, Field

from caesura.settings import EMBEDDED_BASE
from tests.clients.conftest import ASKED, KEY
from tests.serving import Running

#: Answers differ from each other, and are the same when asked for again.
DRAWN: Any = ASKED | {
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "temperature": 1.5,
    "seed": 5,
    "max_tokens": 12,
}


class Review(BaseModel):
    verdict: Literal["good", "bad"]
    stars: int = Field(ge=0, le=5)


class GetWeather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    unit: Literal["celsius", "fahrenheit"]


WEATHER: Any = pydantic_function_tool(GetWeather, name="get_weather")
CALLING: Any = ASKED | {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}


def text_of(client: OpenAI) -> str:
    return client.chat.completions.create(**ASKED).choices[0].message.content or ""


def test_a_whole_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(**ASKED)

    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", EMBEDDED_BASE)
    (choice,) = answer.choices
    assert (choice.index, choice.message.role, choice.message.refusal) == (0, "assistant", None)
    assert choice.message.content
    assert choice.message.tool_calls is None
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert str(answer._request_id).startswith("req_")


def test_a_stream_is_the_whole_answer_in_pieces(client: OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED)

    *chunks, last = client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})

    assert len(chunks) > 3
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert {(chunk.id, chunk.model, chunk.usage) for chunk in chunks} == {(last.id, EMBEDDED_BASE, None)}
    assert (last.choices, last.usage) == ([], whole.usage)


def test_the_stream_helper_tells_of_each_piece_and_puts_them_together(client: OpenAI) -> None:
    with client.chat.completions.stream(**ASKED) as stream:
        events = list(stream)
        answer = stream.get_final_completion()

    deltas = [event for event in events if event.type == "content.delta"]
    (done,) = [event for event in events if event.type == "content.done"]
    assert "".join(event.delta for event in deltas) == deltas[-1].snapshot == done.content == text_of(client)
    assert answer.choices[0].message.content == done.content
    assert answer.choices[0].finish_reason == "stop"


def test_an_answer_and_a_stream_are_parsed_into_the_class_that_they_were_asked_for(client: OpenAI) -> None:
    whole = client.chat.completions.parse(**ASKED, response_format=Review)
    with client.chat.completions.stream(**ASKED, response_format=Review) as stream:
        streamed = stream.get_final_completion()

    assert isinstance(whole.choices[0].message.parsed, Review)
    assert streamed.choices[0].message.parsed == whole.choices[0].message.parsed


def test_several_answers_differ_and_are_the_same_in_a_stream_and_one_by_one(client: OpenAI) -> None:
    choices = client.chat.completions.create(**DRAWN, n=3).choices
    texts = [choice.message.content for choice in choices]
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**DRAWN, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""

    assert [choice.index for choice in choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert streamed == texts
    assert client.chat.completions.create(**DRAWN).choices[0].message.content == texts[0]


def test_log_probabilities_belong_to_the_tokens_that_make_up_the_text(client: OpenAI) -> None:
    (choice,) = client.chat.completions.create(**ASKED, logprobs=True, top_logprobs=3).choices

    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    assert b"".join(bytes(token.bytes or []) for token in tokens).decode() == choice.message.content
    for token in tokens:
        likeliest = [top.logprob for top in token.top_logprobs]
        assert len(likeliest) == 3
        assert likeliest == sorted(likeliest, reverse=True)
        # At temperature 0 the likeliest is the one that is taken.
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, likeliest[0])
        assert token.logprob <= 0


def test_a_stream_has_the_log_probabilities_of_the_whole_answer(client: OpenAI) -> None:
    (whole,) = client.chat.completions.create(**ASKED, logprobs=True, top_logprobs=1).choices
    with client.chat.completions.stream(**ASKED, logprobs=True, top_logprobs=1) as stream:
        (streamed,) = stream.get_final_completion().choices

    assert whole.logprobs is not None
    assert streamed.logprobs is not None
    assert [token.token for token in streamed.logprobs.content or []] == [
        token.token for token in whole.logprobs.content or []
    ]


def test_a_required_tool_is_called_with_arguments_of_its_schema(client: OpenAI) -> None:
    (choice,) = client.chat.completions.create(**CALLING).choices

    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    assert call.id.startswith("call_")
    assert call.function.name == "get_weather"
    GetWeather.model_validate_json(call.function.arguments)


def test_what_a_tool_returned_goes_back_to_the_model(client: OpenAI) -> None:
    (called,) = client.chat.completions.create(**CALLING).choices
    (call,) = called.message.tool_calls or []
    messages = [
        *ASKED["messages"],
        called.message,
        {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"sky": "clear"})},
    ]

    first = client.chat.completions.create(**ASKED, tools=[WEATHER], tool_choice="none")
    second = client.chat.completions.create(**ASKED | {"messages": messages}, tools=[WEATHER], tool_choice="none")

    assert second.choices[0].message.tool_calls is None
    assert second.choices[0].message.content
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_the_stream_helper_and_parse_read_the_arguments_of_a_call(client: OpenAI) -> None:
    (whole,) = client.chat.completions.parse(**CALLING).choices
    with client.chat.completions.stream(**CALLING) as stream:
        (done,) = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        (streamed,) = stream.get_final_completion().choices

    (call,), (streamed_call,) = whole.message.tool_calls or [], streamed.message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather)
    assert done.name == "get_weather"
    assert done.parsed_arguments == streamed_call.function.parsed_arguments == call.function.parsed_arguments
    assert streamed.finish_reason == "tool_calls"


def test_the_tool_that_is_named_is_the_one_that_is_called(client: OpenAI) -> None:
    tools: Any = [WEATHER, pydantic_function_tool(Review, name="give_review")]
    for name in ("get_weather", "give_review"):
        chosen: Any = {"type": "function", "function": {"name": name}}
        (choice,) = client.chat.completions.create(**ASKED, tools=tools, tool_choice=chosen).choices

        names = [call.function.name for call in choice.message.tool_calls or [] if call.type == "function"]
        assert set(names) == {name}


@pytest.mark.parametrize("stream", [False, True])
def test_each_fault_is_raised_in_its_class(server: Running, client: OpenAI, stream: bool) -> None:
    too_long: Any = ASKED | {"messages": [{"role": "user", "content": "caesura " * 5000}]}
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**too_long, stream=stream)
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(**ASKED | {"model": "gpt-0"}, stream=stream)
    with (
        OpenAI(base_url=server.url, api_key=f"{KEY}-not", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        stranger.chat.completions.create(**ASKED, stream=stream)

    assert (bad.value.code, bad.value.param) == ("context_length_exceeded", "messages")
    assert unknown.value.code == "model_not_found"
    assert refused.value.code == "invalid_api_key"
