"""How requests, the pieces of an answer, embeddings and errors travel between the API's process and the engine's: one
line of JSON each. It is plain ASCII, because what reads lines takes other characters (U+2028 among them) for its end.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from caesura.errors import BlobDamaged, CaesuraError, EngineUnavailable, InvalidRequest
from caesura.inference.engine import ChatRequest, Finished, Piece, Text

_REQUEST = TypeAdapter(ChatRequest)
_EMBEDDINGS = TypeAdapter(list[list[float]])
#: The errors that keep their class on the way. Any other arrives as EngineUnavailable.
_ERRORS = {error.__name__: error for error in (CaesuraError, InvalidRequest, BlobDamaged, EngineUnavailable)}


def encode_request(request: ChatRequest) -> bytes:
    return _line(asdict(request))


def decode_request(line: bytes) -> ChatRequest:
    return _REQUEST.validate_python(json.loads(line))


def encode_piece(piece: Piece) -> bytes:
    return _line(asdict(piece))


def encode_error(error: CaesuraError) -> bytes:
    told = {"class": type(error).__name__, "message": error.message, "param": error.param, "code": error.code}
    return _line({"error": told})


def decode_piece(line: str) -> Piece:
    """The piece of the answer in `line`. Raises the error that it holds instead."""
    with _nonsense_is_unavailable():
        match _value_in(line):
            case {"text": str(text)}:
                return Text(text)
            case finished:
                return Finished(**finished)


def encode_texts(texts: list[str]) -> bytes:
    return _line(texts)


def decode_texts(line: bytes) -> list[str]:
    return json.loads(line)


def encode_embeddings(embeddings: list[list[float]]) -> bytes:
    return _line(embeddings)


def decode_embeddings(line: str) -> list[list[float]]:
    """The embeddings in `line`. Raises the error that it holds instead."""
    with _nonsense_is_unavailable():
        return _EMBEDDINGS.validate_python(_value_in(line), strict=True)


def _value_in(line: str) -> Any:
    match json.loads(line):
        case {"error": {"class": name, "message": message, "param": param, "code": code}}:
            raise _ERRORS.get(name, EngineUnavailable)(message, param=param, code=code)
        case value:
            return value


@contextmanager
def _nonsense_is_unavailable() -> Generator[None, None, None]:
    try:
        yield
    except (ValueError, TypeError) as fault:
        raise EngineUnavailable(
            "The inference engine's answer makes no sense. The server's log may say why."
        ) from fault


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode("ascii") + b"\n"
