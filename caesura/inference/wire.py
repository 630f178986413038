"""How requests, the pieces of answers, embeddings and errors travel between the API's process and the engine's: one
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
from caesura.inference.engine import (
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Finished,
    Piece,
    Text,
    ToolArguments,
    ToolCall,
)

#: The longest line that is read: the longest body that the API takes, as ASCII.
MAX_LINE_BYTES = 2**30

_REQUESTS = {kind.__name__: TypeAdapter(kind) for kind in (ChatRequest, CompletionRequest, EmbedRequest)}
_PIECES = {kind.__name__: TypeAdapter(kind) for kind in (Text, ToolCall, ToolArguments, Finished)}
_EMBEDDINGS = TypeAdapter(Embeddings)
#: The errors that keep their class on the way. Any other arrives as EngineUnavailable.
_ERRORS = {error.__name__: error for error in (CaesuraError, InvalidRequest, BlobDamaged, EngineUnavailable)}


def encode_request(request: ChatRequest | CompletionRequest | EmbedRequest) -> bytes:
    return _line({type(request).__name__: asdict(request)})


def decode_request(line: bytes) -> ChatRequest | CompletionRequest | EmbedRequest:
    ((kind, value),) = json.loads(line).items()
    return _REQUESTS[kind].validate_python(value)


def encode_piece(piece: Piece) -> bytes:
    return _line({type(piece).__name__: asdict(piece)})


def encode_error(error: CaesuraError) -> bytes:
    told = {"class": type(error).__name__, "message": error.message, "param": error.param, "code": error.code}
    return _line({"error": told})


def decode_piece(line: bytes) -> Piece:
    """The piece of the answer in `line`. Raises the error that it holds instead."""
    with _nonsense_is_unavailable():
        ((kind, value),) = _value_in(line).items()
        return _PIECES[kind].validate_python(value)


def encode_embeddings(embeddings: Embeddings) -> bytes:
    return _line(asdict(embeddings))


def decode_embeddings(line: bytes) -> Embeddings:
    """The embeddings in `line`. Raises the error that it holds instead."""
    with _nonsense_is_unavailable():
        return _EMBEDDINGS.validate_python(_value_in(line))


def _value_in(line: bytes) -> Any:
    match json.loads(line):
        case {"error": {"class": name, "message": message, "param": param, "code": code}}:
            raise _ERRORS.get(name, EngineUnavailable)(message, param=param, code=code)
        case value:
            return value


@contextmanager
def _nonsense_is_unavailable() -> Generator[None, None, None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as fault:
        raise EngineUnavailable(
            "The inference engine's answer makes no sense. The server's log may say why."
        ) from fault


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode("ascii") + b"\n"
