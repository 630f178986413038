from __future__ import annotations

import pytest

from caesura.errors import BlobDamaged, CaesuraError, EngineUnavailable, InvalidRequest, LeaseLost
from caesura.inference.engine import ChatRequest, Finished, Piece, Text
from caesura.inference.wire import decode_piece, decode_request, encode_error, encode_piece, encode_request
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
)


@pytest.mark.parametrize("request_", [REQUEST, ChatRequest("micro", None, [])])
def test_a_request_arrives_as_it_was_sent(request_: ChatRequest) -> None:
    assert decode_request(encode_request(request_)) == request_


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
    with pytest.raises(type(error)) as raised:
        decode_piece(encode_error(error).decode())

    assert type(raised.value) is type(error)
    assert vars(raised.value) == vars(error)


@pytest.mark.parametrize(
    "line", [encode_error(LeaseLost()).decode(), "Internal Server Error", "[]", "{}", '{"text": null}', ""]
)
def test_what_is_not_expected_is_an_unavailable_engine(line: str) -> None:
    with pytest.raises(EngineUnavailable):
        decode_piece(line)
