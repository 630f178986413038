"""`/chat/completions`: whole answers and streams, from base models, tuned models and checkpoints."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from caesura.api.errors import error_body
from caesura.api.explain import quote
from caesura.api.leaving import unless_client_leaves
from caesura.api.state import Server, ServerDependency
from caesura.errors import CaesuraError, InvalidRequest, NotFound
from caesura.ids import new_id
from caesura.inference.engine import ChatRequest, Finished, Piece, Text
from caesura.jobs import Model
from caesura.schema.chat import (
    ANY_OBJECT,
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    CreateChatCompletion,
    Delta,
    ResponseFormat,
    Usage,
)

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/chat/completions")


@router.post("", response_model=None)
async def create(body: CreateChatCompletion, request: Request, server: ServerDependency) -> Response:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    model, asked = await run_in_threadpool(_to_request, body, server)
    pieces = server.engine.chat(asked)
    if not body.stream:
        return _json(await unless_client_leaves(request, _collect(model, pieces)))
    # The first piece is awaited before the answer begins, so that a fault still has its status.
    first = await unless_client_leaves(request, anext(pieces))
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    events = _stream(model, first, pieces, include_usage, request.state.request_id)
    return EventStream(events, pieces)


class EventStream(StreamingResponse):
    """Server-sent events, made of what comes from `source`; both are closed when the answer ends, however it does."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None], source: AsyncGenerator[Any, None]) -> None:
        super().__init__(events)
        self._events = events
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._source), aclosing(self._events):
            await super().__call__(scope, receive, send)


def _to_request(body: CreateChatCompletion, server: Server) -> tuple[str, ChatRequest]:
    """The name of the model that answers, and what it is asked."""
    model = server.resolve_model(body.model)
    if model is None:
        raise NotFound(
            f"The model `{quote(body.model)}` does not exist or you do not have access to it.", code="model_not_found"
        )
    if isinstance(model, Model) and model.base not in server.settings.bases():
        raise NotFound(
            f"The model `{model.name}` was tuned from '{model.base}', which is no longer among this server's base "
            "models. Put it back under [models] in caesura.toml.",
            code="model_not_found",
        )
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    request = ChatRequest(
        base=model.base if isinstance(model, Model) else model,
        adapter=model.adapter if isinstance(model, Model) else None,
        messages=[message.model_dump(exclude_unset=True) for message in body.messages],
        max_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=tuple(text for text in stop if text),
        json_schema=_json_schema(body.response_format),
    )
    return (model.name if isinstance(model, Model) else model), request


def _json_schema(format: ResponseFormat | None) -> dict[str, Any] | None:
    """The schema of the answer; None: it is plain text."""
    if format is None or format.type == "text":
        schema = None
    elif format.type == "json_object":
        schema = ANY_OBJECT
    elif format.json_schema is not None:
        return format.json_schema.schema_
    else:
        raise InvalidRequest(
            "Missing required parameter: 'response_format.json_schema'.",
            param="response_format.json_schema",
            code="missing_required_parameter",
        )
    if format is not None and format.json_schema is not None:
        raise InvalidRequest(
            "The 'response_format.json_schema' parameter is only allowed when 'response_format.type' is 'json_schema'.",
            param="response_format.json_schema",
        )
    return schema


async def _collect(model: str, pieces: AsyncGenerator[Piece, None]) -> ChatCompletion:
    texts: list[str] = []
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Text):
                texts.append(piece.text)
            else:
                choice = Choice(message=AnswerMessage(content="".join(texts)), finish_reason=piece.finish_reason)
                return ChatCompletion(
                    id=new_id("chatcmpl-"), created=int(time.time()), model=model, choices=[choice], usage=_usage(piece)
                )
    raise CaesuraError  # the engine's contract is to end with Finished


async def _stream(
    model: str, first: Piece, pieces: AsyncGenerator[Piece, None], include_usage: bool, request_id: str
) -> AsyncGenerator[str, None]:
    """Server-sent events: the role, the pieces, the finish, the usage if asked for, `[DONE]`."""
    id, created = new_id("chatcmpl-"), int(time.time())

    def chunk(*choices: ChunkChoice, usage: Usage | None = None) -> str:
        value = ChatCompletionChunk(id=id, created=created, model=model, choices=list(choices), usage=usage)
        body = value.model_dump(exclude_unset=True) | {"object": value.object}
        if not include_usage:
            del body["usage"]
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

    try:
        yield chunk(ChunkChoice(index=0, delta=Delta(role="assistant", content="", refusal=None), finish_reason=None))
        piece = first
        while isinstance(piece, Text):
            yield chunk(ChunkChoice(index=0, delta=Delta(content=piece.text), finish_reason=None))
            piece = await anext(pieces)
        yield chunk(ChunkChoice(index=0, delta=Delta(), finish_reason=piece.finish_reason))
    except Exception as error:  # whatever it is, this is the only way left to tell of it
        logger.exception("request %s: the stream broke off", request_id)
        yield f"data: {json.dumps(error_body(error if isinstance(error, CaesuraError) else CaesuraError()))}\n\n"
        return
    if include_usage:
        yield chunk(usage=_usage(piece))
    yield "data: [DONE]\n\n"


def _usage(finished: Finished) -> Usage:
    return Usage(
        prompt_tokens=finished.prompt_tokens,
        completion_tokens=finished.completion_tokens,
        total_tokens=finished.prompt_tokens + finished.completion_tokens,
    )


def _json(value: BaseModel) -> Response:
    return Response(value.model_dump_json(), media_type="application/json")
