from __future__ import annotations

import pytest

from caesura.errors import BlobDamaged, CaesuraError, EngineUnavailable, InvalidRequest, LeaseLost
from caesura.inference.engine import ChatRequest, Finished, Piece, Text
from caesura.inference.wire import (
    decode_embeddings,
    decode_piece,
    decode_request,
    decode_texts,
    encode_embeddings,
    encode_error,
    encode_piece,
    encode_request,
    encode_texts,
)
from caesura.jobs import Artifact

REQUEST = ChatRequest(
    base="micro",
    adapter=Artifact("adapters/1", {"adapter_config.json": (3, "ab")}),
    messages=[{"role": "user", "content": "Grüße\u2028😀"}],
    tools=[{"type": "function", "function": {"name": "f"}}],
    max_tokens=5,
    temperature=0.5,
    top_p=0.9,
    seed=-(2**63),
    stop=("\n", "END"),
    json_schema={"enum": ["\u2028", None, 0.5]},
)


@pytest.mark.parametrize("request_", [REQUEST, ChatRequest("micro", None, [])])
def test_a_request_arrives_as_it_was_sent(request_: ChatRequest) -> None:
    assert decode_request(encode_request(request_)) == request_


def test_texts_and_embeddings_arrive_as_they_were_sent() -> None:
    texts, embeddings = ["", "a\u2028b\n😀"], [[0.1, -1e-30], [1.0, 0.0]]

    assert decode_texts(encode_texts(texts)) == texts
    assert decode_embeddings(encode_embeddings(embeddings).decode()) == embeddings


@pytest.mark.parametrize("piece", [Text("a\u2028b\n\x85😀"), Finished("length", 3, 4)])
def test_a_piece_arrives_as_it_was_sent_in_one_line(piece: Piece) -> None:
    line = encode_piece(piece).decode()

    assert len(line.splitlines()) == 1
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
    for decode in (decode_piece, decode_embeddings):
        with pytest.raises(type(error)) as raised:
            decode(encode_error(error).decode())

        assert type(raised.value) is type(error)
        assert vars(raised.value) == vars(error)


@pytest.mark.parametrize(
    "line", [encode_error(LeaseLost()).decode(), "Internal Server Error", "[]", "{}", '{"text": null}', ""]
)
def test_what_is_not_expected_is_an_unavailable_engine(line: str) -> None:
    with pytest.raises(EngineUnavailable):
        decode_piece(line)


@pytest.mark.parametrize("line", ["Internal Server Error", "{}", "[1.0]", '[["1"]]', "null"])
def test_what_is_no_embedding_is_an_unavailable_engine(line: str) -> None:
    with pytest.raises(EngineUnavailable):
        decode_embeddings(line)
