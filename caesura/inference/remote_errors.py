"""What a remote engine's errors mean: statuses, and the bodies of vLLM and its like, to ours. No I/O but the log.

Who may have to mend it decides: InvalidRequest for what the request or the settings must change, EngineUnavailable for
what time may heal. No message names the URL, which may hold a password.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import httpx

from caesura.errors import CaesuraError, EngineUnavailable, InvalidRequest
from caesura.inference.engine import ChatRequest, CompletionRequest, EmbedRequest

logger = logging.getLogger(__name__)

#: The request is at fault. 501 is vLLM's for what it does not do.
_FAULTS_OF_THE_REQUEST = (400, 413, 422, 501)
_MAX_QUOTED = 500

AnyRequest = ChatRequest | CompletionRequest | EmbedRequest


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as the server tells it."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None


def read_error(status: int, body: bytes) -> Refusal:
    """The error in a reply that is not a success: OpenAI's form, FastAPI's, or a bare text."""
    text = body.decode(errors="replace")
    try:
        value = json.loads(text)
    except ValueError:
        return Refusal(status, _one_line(text))
    found = find_error(value)
    if found is not None:
        return Refusal(status, found.message, found.param, found.code)
    detail = cast(dict[str, Any], value).get("detail") if isinstance(value, dict) else value
    return Refusal(status, _one_line(detail if isinstance(detail, str) else text))


def find_error(value: Any) -> Refusal | None:
    """The error that a JSON value of the server tells, with its own status; None: it tells none."""
    match value:
        case {"error": {"message": str(message)} as error} | ({"object": "error", "message": str(message)} as error):
            told = cast(dict[str, Any], error)
            code, param = told.get("code"), told.get("param")
            return Refusal(
                status=code if isinstance(code, int) else 500,
                message=_one_line(message),
                param=param if isinstance(param, str) else None,
                code=code if isinstance(code, str) else None,
            )
        case {"error": error} if error is not None:
            return Refusal(500, _one_line(str(error)))
        case _:
            return None


def to_error(refusal: Refusal, request: AnyRequest) -> CaesuraError:
    """What to raise for `request`, which the server refused so."""
    status, message = refusal.status, refusal.message
    if status in _FAULTS_OF_THE_REQUEST:
        if refusal.code == "context_length_exceeded" or re.search("context length|context window", message):
            return InvalidRequest(message, param=_prompt_param(request), code="context_length_exceeded")
        return InvalidRequest(message or "The server at 'engine_url' refuses this.", param=_param(refusal, request))
    logger.error("the server at 'engine_url' answered with status %d: %s", status, message)
    if status in (404, 405):
        return InvalidRequest(
            "The server at 'engine_url' does not serve this model for this. Start it with the base model under the "
            "name that docs/vllm.md gives, and check that 'engine_url' is the API's base, which mostly ends in /v1.",
            param="model",
            code="model_not_available",
        )
    if status in (401, 403):
        return EngineUnavailable(
            f"The server at 'engine_url' refuses this server's key (status {status}): set the right one in the "
            "environment variable that 'engine_api_key_env' names."
        )
    if status == 429:
        return EngineUnavailable("The server at 'engine_url' has too much to do (status 429). Please try again later.")
    if 300 <= status < 400:
        return EngineUnavailable(
            f"The server at 'engine_url' answers with a redirect (status {status}), which is not followed: name the "
            "place itself."
        )
    return EngineUnavailable(f"The server at 'engine_url' failed (status {status}); this server's log says more.")


def _prompt_param(request: AnyRequest) -> str:
    match request:
        case ChatRequest():
            return "messages"
        case CompletionRequest():
            return "prompt"
        case EmbedRequest():
            return "input"


def _param(refusal: Refusal, request: AnyRequest) -> str | None:
    """The parameter at fault: the one that the server names, else by the words of vLLM, which mostly names none."""
    if refusal.param is not None:
        return refusal.param
    message = refusal.message.lower()
    if isinstance(request, EmbedRequest):
        return "input"
    if "logit_bias" in message:
        return "logit_bias"
    if "out of vocabulary" in message:
        return _prompt_param(request)
    if isinstance(request, ChatRequest):
        if request.tools and "tool" in message:
            return "tools"
        if request.json_schema is not None and re.search("schema|grammar", message):
            return "response_format.json_schema.schema"
        if "template" in message:
            return "messages"
    return None


@contextmanager
def nonsense_is_unavailable() -> Generator[None, None, None]:
    """What cannot be read, as ValueError, becomes EngineUnavailable. pydantic's ValidationError is one."""
    try:
        yield
    except (ValueError, RecursionError) as fault:
        logger.error("the answer of the server at 'engine_url' makes no sense: %s", _one_line(str(fault)))
        raise EngineUnavailable(
            "The answer of the server at 'engine_url' makes no sense. This server's log says more."
        ) from fault


@contextmanager
def transport_is_unavailable() -> Generator[None, None, None]:
    """What happens to connections becomes EngineUnavailable."""
    try:
        yield
    except httpx.TransportError as error:
        logger.warning("the connection to the server at 'engine_url': %s", type(error).__name__)
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            what = "cannot be reached"
        elif isinstance(error, httpx.TimeoutException):
            what = "was silent for too long"
        else:
            what = "broke off its answer"
        raise EngineUnavailable(f"The server at 'engine_url' {what}. Please try again in a few seconds.") from error


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_QUOTED else line[:_MAX_QUOTED] + "…"
