"""How a request, the pieces of its answer and errors travel between the API's process and the engine's: one line of
JSON each. It is plain ASCII, because what reads lines takes other characters (U+2028 among them) for their ends.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from caesura.errors import BlobDamaged, CaesuraError, EngineUnavailable, InvalidRequest
from caesura.inference.engine import ChatRequest, Finished, Piece, Text

_REQUEST = TypeAdapter(ChatRequest)
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
    try:
        match json.loads(line):
            case {"text": str(text)}:
                return Text(text)
            case {"error": {"class": name, "message": message, "param": param, "code": code}}:
                error = _ERRORS.get(name, EngineUnavailable)(message, param=param, code=code)
            case finished:
                return Finished(**finished)
    except (ValueError, TypeError) as fault:
        raise EngineUnavailable(
            "The inference engine's answer makes no sense. The server's log may say why."
        ) from fault
    raise error


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode("ascii") + b"\n"
