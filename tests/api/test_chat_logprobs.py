from __future__ import annotations

from typing import Any

import pytest

from caesura.inference.engine import Finished, Text, TokenLogprob
from tests.api.service import EngineDouble, Service
from tests.api.test_chat import MESSAGES, post, stream


def token(text: str, logprob: float, *top: TokenLogprob) -> TokenLogprob:
    return TokenLogprob(text, logprob, tuple(text.encode()), top)


HALF = TokenLogprob("\ufffd", -0.5, (0xC3,))
FIRST = token("Fu", -0.25, token("Fu", -0.25), token("fu", -2.0))
PIECES: Any = [Text("Fu", logprobs=(FIRST,)), Text("ß", logprobs=(HALF, token("ß", -1.0))), Finished("stop", 5, 3)]
TOLD = [
    {
        "token": "Fu",
        "logprob": -0.25,
        "bytes": [70, 117],
        "top_logprobs": [
            {"token": "Fu", "logprob": -0.25, "bytes": [70, 117]},
            {"token": "fu", "logprob": -2.0, "bytes": [102, 117]},
        ],
    },
    {"token": "\ufffd", "logprob": -0.5, "bytes": [195], "top_logprobs": []},
    {"token": "ß", "logprob": -1.0, "bytes": [195, 159], "top_logprobs": []},
]


@pytest.mark.parametrize(
    ("extra", "asked"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 0}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_how_many_are_asked_for_reaches_the_engine(
    service: Service, engine: EngineDouble, extra: dict[str, Any], asked: int | None
) -> None:
    assert post(service, **extra).status_code == 200

    assert engine.requests[0].top_logprobs == asked


def test_they_are_told_in_openais_form(service: Service, engine: EngineDouble) -> None:
    engine.pieces = PIECES

    assert post(service, logprobs=True).json()["choices"][0]["logprobs"] == {"content": TOLD, "refusal": None}


def test_they_are_null_where_nobody_asked(service: Service, engine: EngineDouble) -> None:
    engine.pieces = PIECES

    assert post(service).json()["choices"][0]["logprobs"] is None
    assert not any("logprobs" in chunk["choices"][0] for chunk in stream(service)[:-1])


def test_the_sdk_reads_them(service: Service, engine: EngineDouble) -> None:
    engine.pieces = PIECES
    completion = service.client.chat.completions.create(
        model="caesura-tiny", messages=MESSAGES, logprobs=True, top_logprobs=2
    )

    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [one.logprob for one in logprobs.content] == [-0.25, -0.5, -1.0]
    assert bytes(byte for one in logprobs.content[1:2] for byte in one.bytes or ()) == b"\xc3"


def test_in_a_stream_they_come_in_the_chunk_of_their_text(service: Service, engine: EngineDouble) -> None:
    engine.pieces = PIECES
    role, first, second, end = [chunk["choices"][0] for chunk in stream(service, logprobs=True)[:-1]]

    assert (first["delta"], first["logprobs"]) == ({"content": "Fu"}, {"content": TOLD[:1], "refusal": None})
    assert (second["delta"], second["logprobs"]) == ({"content": "ß"}, {"content": TOLD[1:], "refusal": None})
    assert "logprobs" not in role
    assert "logprobs" not in end
