"""The remote engine against vLLM's wire, word for word. What both engines promise is in test_engines.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from caesura.errors import InvalidRequest
from caesura.inference.engine import (
    Embeddings,
    EmbedRequest,
    Finished,
    Text,
    TokenLogprob,
    ToolArguments,
    ToolCall,
)
from caesura.inference.remote import RemoteEngine
from caesura.inference.remote_wire import Answers
from tests.inference.fake_vllm import BASE, FakeVllm, event
from tests.inference.remote.asking import (
    CHAT,
    COMPLETION,
    HELLO,
    TOOL,
    USAGE,
    ask,
    delta,
    script,
    stream,
)

# The answer.


def test_the_pieces_are_those_of_the_chunks_and_the_usage_is_the_last(
    open_engine: Callable[..., RemoteEngine],
) -> None:
    assert ask(open_engine()) == [Text("Hel"), Text("lo"), Finished("stop", 5, 2)]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_bytes_may_be_cut_anywhere(size: int) -> None:
    """Also in a character, and characters that other programs take for a line's end are none."""
    data = stream(delta(content="é\u2028\x85ß"), delta(finish_reason="length"), USAGE).replace(b"\n", b"\r\n")
    answers = Answers(CHAT)

    pieces = [piece for start in range(0, len(data), size) for piece in answers.feed(data[start : start + size])]

    assert pieces + answers.finish() == [Text("é\u2028\x85ß"), Finished("length", 5, 2)]


def test_comments_and_other_fields_of_the_stream_are_passed_over() -> None:
    answers = Answers(CHAT)

    assert answers.feed(b": ping\n\nid: 3\n" + stream(*HELLO, USAGE)) == [Text("Hel"), Text("lo")]


def test_several_answers_have_each_its_own_tokens(fake: FakeVllm, open_engine: Callable[..., RemoteEngine]) -> None:
    def so_far(num_tokens: int) -> dict[str, Any]:
        return {"usage": {"prompt_tokens": 5, "completion_tokens": num_tokens}}

    total = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 8}}
    fake.answer = script(
        stream(
            delta(1, content="b") | so_far(1),
            delta(0, content="a") | so_far(1),
            delta(1, "stop") | so_far(6),
            delta(0, "length") | so_far(2),
            total,
        )
    )

    pieces = ask(open_engine(), replace(CHAT, n=2))

    assert fake.requests[0][1]["stream_options"]["continuous_usage_stats"] is True
    assert pieces == [Text("b", 1), Text("a", 0), Finished("length", 5, 2, 0), Finished("stop", 5, 6, 1)]


def test_where_each_answers_tokens_are_not_told_the_sum_is_right() -> None:
    answers = Answers(replace(CHAT, n=2))
    answers.feed(stream(delta(0, "stop"), delta(1, "stop"), USAGE))

    assert [finished.completion_tokens for finished in answers.finish()] == [0, 2]


def test_an_echo_alone_samples_nothing() -> None:
    answers = Answers(replace(COMPLETION, echo=True, max_tokens=0))
    pieces = answers.feed(stream({"choices": [{"index": 0, "text": "Once", "finish_reason": "length"}]}, USAGE))

    assert pieces + answers.finish() == [Text("Once"), Finished("length", 5, 0)]


def test_calls_of_functions_become_pieces() -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        return delta(tool_calls=[{"index": index, "id": "x", "type": "function", "function": function}])

    answers = Answers(replace(CHAT, tools=[TOOL]))
    pieces = answers.feed(
        stream(
            call(0, name="f", arguments='{"a"'),
            call(0, name="f", arguments=": 1}"),  # some versions say the name again
            call(1, name="g"),
            call(1, arguments="{}"),
            delta(finish_reason="stop"),  # as vLLM says where the request names the function
            USAGE,
        )
    )

    assert pieces == [
        ToolCall(0, "f"),
        ToolArguments(0, '{"a"'),
        ToolArguments(0, ": 1}"),
        ToolCall(1, "g"),
        ToolArguments(1, "{}"),
    ]
    assert answers.finish() == [Finished("tool_calls", 5, 2)]


def test_log_probabilities_of_a_chat_are_told_with_their_tokens() -> None:
    def told(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    content = [told("é", -0.5) | {"top_logprobs": [told("é", -0.5), told("e", -1.0), told("a", -2.0)]}]
    chunk = {"choices": [{"index": 0, "delta": {"content": ""}, "logprobs": {"content": content}}]}

    (piece,) = Answers(replace(CHAT, top_logprobs=2)).feed(event(chunk))

    top = (TokenLogprob("é", -0.5, (0xC3, 0xA9)), TokenLogprob("e", -1.0, (0x65,)))
    assert piece == Text("", logprobs=(TokenLogprob("é", -0.5, (0xC3, 0xA9), top),))
    assert Answers(CHAT).feed(event(chunk)) == []


def test_log_probabilities_of_a_completion_are_ranked_and_as_many_as_asked_for() -> None:
    logprobs = {
        "text_offset": [0, 1],
        "tokens": ["A", "b"],
        "token_logprobs": [None, -3.0],
        "top_logprobs": [None, {"b": -3.0, "y": -2.0, "x": -1.0}],
    }
    chunk = {"choices": [{"index": 0, "text": "Ab", "logprobs": logprobs, "finish_reason": None}]}

    (piece,) = Answers(replace(COMPLETION, top_logprobs=2)).feed(event(chunk))

    top = (TokenLogprob("x", -1.0, (0x78,)), TokenLogprob("y", -2.0, (0x79,)))
    assert piece == Text("Ab", logprobs=(TokenLogprob("A", None, (0x41,)), TokenLogprob("b", -3.0, (0x62,), top)))


def test_embeddings_have_unit_length_and_the_order_of_the_inputs(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine]
) -> None:
    data = [{"index": 1, "embedding": [0, 0]}, {"index": 0, "embedding": [3, 4]}]
    fake.answer = script(json.dumps({"data": data, "usage": {"prompt_tokens": 9, "total_tokens": 9}}).encode())

    embeddings = ask(open_engine(), EmbedRequest(["a", ""], BASE))

    assert embeddings == Embeddings([[0.6, 0.8], [0, 0]], 9)
    assert fake.requests == [("/embeddings", {"model": BASE, "input": ["a", ""], "encoding_format": "float"})]


def test_embeddings_without_a_base_are_those_of_the_embedding_model(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine]
) -> None:
    fake.answer = script(b'{"data": [{"index": 0, "embedding": [2]}], "usage": {"prompt_tokens": 1}}')

    assert ask(open_engine(embedding_model=BASE), EmbedRequest(["a"])).vectors == [[1.0]]
    with pytest.raises(InvalidRequest, match="No embedding model is configured"):
        ask(open_engine(), EmbedRequest(["a"]))


def test_no_inputs_have_no_embeddings(fake: FakeVllm, open_engine: Callable[..., RemoteEngine]) -> None:
    assert ask(open_engine(), EmbedRequest([], BASE)) == Embeddings([], 0)
    assert fake.requests == []
