from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caesura.errors import BlobDamaged, CaesuraError, EngineUnavailable, InvalidRequest, LeaseLost
from caesura.inference.engine import (
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Finished,
    Piece,
    Text,
    TokenLogprob,
    ToolArguments,
    ToolCall,
)
from caesura.inference.wire import (
    decode_embeddings,
    decode_piece,
    decode_request,
    encode_embeddings,
    encode_error,
    encode_piece,
    encode_request,
)
from caesura.jobs import Artifact

#: U+2028 and U+0085 end a line for what reads lines of text.
texts = st.text(
    st.one_of(st.sampled_from('\n\r\u2028\x85"\\é😀'), st.characters(exclude_categories=["Cs"])), max_size=8
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(texts, inner, max_size=2)),
    max_leaves=4,
)
objects = st.dictionaries(texts, values, max_size=2)
adapters = st.none() | st.builds(Artifact, texts, st.dictionaries(texts, st.tuples(st.integers(0), texts), max_size=2))
token_ids = st.lists(st.integers(0, 10**6), max_size=3)
asked: dict[str, st.SearchStrategy[Any]] = {
    "base": texts,
    "adapter": adapters,
    "n": st.integers(1, 128),
    "max_tokens": st.none() | st.integers(0),
    "temperature": numbers,
    "top_p": numbers,
    "frequency_penalty": numbers,
    "presence_penalty": numbers,
    "logit_bias": st.dictionaries(st.integers(0, 10**6), numbers, max_size=2),
    "seed": st.none() | st.integers(-(2**63), 2**63 - 1),
    "stop": st.lists(texts, max_size=4).map(tuple),
    "top_logprobs": st.none() | st.integers(0, 20),
}
chats = st.builds(
    ChatRequest,
    **asked,
    messages=st.lists(objects, max_size=2),
    tools=st.none() | st.lists(objects, max_size=2),
    tool_choice=st.sampled_from(["auto", "required"]) | st.tuples(st.just("function"), texts),
    parallel_tool_calls=st.booleans(),
    json_schema=st.none() | objects,
)
completions = st.builds(CompletionRequest, **asked, prompt=texts | token_ids, echo=st.booleans())
indices = st.integers(0, 127)


def token_logprobs(top: st.SearchStrategy[Any]) -> st.SearchStrategy[TokenLogprob]:
    spelled = st.lists(st.integers(0, 255), max_size=3).map(tuple)
    return st.builds(TokenLogprob, texts, st.none() | numbers, spelled, top)


logprobs = st.lists(token_logprobs(st.lists(token_logprobs(st.just(())), max_size=2).map(tuple)), max_size=2).map(tuple)
pieces = st.one_of(
    st.builds(Text, texts, indices, logprobs),
    st.builds(ToolCall, indices, texts, indices),
    st.builds(ToolArguments, indices, texts, indices),
    st.builds(Finished, st.sampled_from(["stop", "length", "tool_calls"]), st.integers(0), st.integers(0), indices),
)
embed_requests = st.builds(
    EmbedRequest, st.lists(texts, max_size=3) | st.lists(token_ids, max_size=3), st.none() | texts, adapters
)
embeddings = st.builds(Embeddings, st.lists(st.lists(numbers, max_size=3), max_size=3), st.integers(0))


@given(chats | completions | embed_requests)
def test_a_request_arrives_as_it_was_sent_in_one_line(
    request_: ChatRequest | CompletionRequest | EmbedRequest,
) -> None:
    line = encode_request(request_)

    assert len(line.decode().splitlines()) == 1
    assert decode_request(line) == request_


@given(embeddings)
def test_embeddings_arrive_as_they_were_sent_in_one_line(given_: Embeddings) -> None:
    line = encode_embeddings(given_)

    assert len(line.decode().splitlines()) == 1
    assert decode_embeddings(line) == given_


@given(pieces)
def test_a_piece_arrives_as_it_was_sent_in_one_line(piece: Piece) -> None:
    line = encode_piece(piece)

    assert len(line.decode().splitlines()) == 1
    assert decode_piece(line) == piece


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("Too long.", param="messages", code="context_length_exceeded"),
        BlobDamaged("The stored file 'x' does not match its checksum."),
        EngineUnavailable(),
        CaesuraError(),
    ],
)
def test_an_error_arrives_as_the_same_class_with_its_message_param_and_code(error: CaesuraError) -> None:
    decoders: list[Callable[[str], Any]] = [decode_piece, decode_embeddings]
    for decode in decoders:
        with pytest.raises(type(error)) as raised:
            decode(encode_error(error).decode())

        assert type(raised.value) is type(error)
        assert vars(raised.value) == vars(error)


@pytest.mark.parametrize(
    "line",
    [
        encode_error(LeaseLost()).decode(),
        "Internal Server Error",
        "[]",
        "{}",
        "",
        '{"Other": {}}',
        '{"Text": {"text": null}}',
        '{"Text": {"text": ""}, "Finished": {}}',
        '{"Finished": {"finish_reason": "?", "prompt_tokens": 1, "completion_tokens": 1}}',
    ],
)
def test_what_is_not_expected_is_an_unavailable_engine(line: str) -> None:
    with pytest.raises(EngineUnavailable):
        decode_piece(line)


@pytest.mark.parametrize(
    "line", ["Internal Server Error", "{}", "[[1.0]]", '{"vectors": [["x"]], "num_tokens": 1}', "null"]
)
def test_what_is_no_embedding_is_an_unavailable_engine(line: str) -> None:
    with pytest.raises(EngineUnavailable):
        decode_embeddings(line)
