"""`/chat/completions`: whole answers and streams, from base models, tuned models and checkpoints."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from caesura.api.admission import PlacesDependency
from caesura.api.asked import check_stream_options, collect, find_answering, json_answer, sampling_of, until_finished
from caesura.api.chat_answers import Telling, whole_answer, write_chunks
from caesura.api.leaving import unless_client_leaves
from caesura.api.route import Route
from caesura.api.sse import open_stream
from caesura.api.state import Server, ServerDependency
from caesura.api.tools import tools_of
from caesura.errors import InvalidRequest
from caesura.ids import new_id
from caesura.inference.engine import ChatRequest
from caesura.schema.chat import ANY_OBJECT, CreateChatCompletion, Message, ResponseFormat

router = APIRouter(prefix="/v1/chat/completions", route_class=Route)


@router.post("", response_model=None)
async def create(
    body: CreateChatCompletion, request: Request, server: ServerDependency, places: PlacesDependency
) -> Response:
    check_stream_options(body)
    places.take(body.n or 1)
    model, asked = await run_in_threadpool(_to_request, body, server)
    telling = Telling(
        id=new_id("chatcmpl-"),
        created=int(time.time()),
        model=model,
        has_logprobs=asked.top_logprobs is not None,
        has_functions=body.functions is not None,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )
    pieces = server.engine.generate(asked)
    if body.stream:
        return await open_stream(request, until_finished(pieces, asked.n), lambda pieces: write_chunks(telling, pieces))
    answers = await unless_client_leaves(request, collect(pieces, asked.n))
    return json_answer(whole_answer(telling, answers))


def _to_request(body: CreateChatCompletion, server: Server) -> tuple[str, ChatRequest]:
    """The name of the model that answers, and what it is asked."""
    answering = find_answering(server, body.model)
    request = ChatRequest(
        answering.base,
        answering.adapter,
        [_to_message(message) for message in body.messages],
        max_tokens=body.max_completion_tokens or body.max_tokens,
        top_logprobs=_top_logprobs(body),
        json_schema=schema_of(body.response_format),
        **sampling_of(body),
        **tools_of(body),
    )
    return answering.name, request


def _to_message(message: Message) -> dict[str, Any]:
    """As the chat template takes it: what an assistant refused with is text like any other."""
    told = message.model_dump(exclude_unset=True)
    if isinstance(told.get("content"), list):
        told["content"] = [
            {"type": "text", "text": part["refusal"]} if part["type"] == "refusal" else part for part in told["content"]
        ]
    return told


def _top_logprobs(body: CreateChatCompletion) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs is not None:
        raise InvalidRequest(
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", param="top_logprobs"
        )
    return None


def schema_of(format: ResponseFormat | None, param: str = "response_format") -> dict[str, Any] | None:
    """The schema of the answer; None: it is plain text. Raises InvalidRequest where format and schema do not fit."""
    if format is None or format.type == "text":
        schema = None
    elif format.type == "json_object":
        schema = ANY_OBJECT
    elif format.json_schema is not None:
        return format.json_schema.schema_
    else:
        raise InvalidRequest(
            f"Missing required parameter: '{param}.json_schema'.",
            param=f"{param}.json_schema",
            code="missing_required_parameter",
        )
    if format is not None and format.json_schema is not None:
        raise InvalidRequest(
            f"The '{param}.json_schema' parameter is only allowed when '{param}.type' is 'json_schema'.",
            param=f"{param}.json_schema",
        )
    return schema
