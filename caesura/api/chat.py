"""`/chat/completions`: whole answers and streams, from base models, tuned models and checkpoints."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from caesura.api.errors import error_body
from caesura.api.state import Server, ServerDependency
from caesura.errors import CaesuraError, InvalidRequest, NotFound
from caesura.ids import new_id
from caesura.inference.engine import ChatRequest, Finished, Piece, Text
from caesura.jobs import Model
from caesura.schema.chat import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    CreateChatCompletion,
    Delta,
    Usage,
)

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/chat/completions")


@router.post("", response_model=None)
async def create(body: CreateChatCompletion, server: ServerDependency) -> Response:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    model, request = _to_request(body, server)
    pieces = server.engine.chat(request)
    if body.stream:
        # The first piece is awaited before the answer begins, so that a fault still has its status.
        first = await anext(pieces)
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(_stream(model, first, pieces, include_usage), media_type="text/event-stream")
    return _json(await _collect(model, pieces))


def _to_request(body: CreateChatCompletion, server: Server) -> tuple[str, ChatRequest]:
    """The name of the model that answers, and what it is asked."""
    model = server.resolve_model(body.model)
    if model is None:
        raise NotFound(
            f"The model `{body.model}` does not exist or you do not have access to it.", code="model_not_found"
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
    )
    return (model.name if isinstance(model, Model) else model), request


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
    model: str, first: Piece, pieces: AsyncGenerator[Piece, None], include_usage: bool
) -> AsyncGenerator[str, None]:
    """Server-sent events: the role, the pieces, the finish, the usage if asked for, `[DONE]`."""
    id, created = new_id("chatcmpl-"), int(time.time())

    def chunk(*choices: ChunkChoice, usage: Usage | None = None) -> str:
        value = ChatCompletionChunk(id=id, created=created, model=model, choices=list(choices), usage=usage)
        body = value.model_dump(exclude_unset=True) | {"object": value.object}
        if not include_usage:
            del body["usage"]
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

    yield chunk(ChunkChoice(index=0, delta=Delta(role="assistant", content="", refusal=None), finish_reason=None))
    try:
        async with aclosing(pieces):
            piece: Piece = first
            while isinstance(piece, Text):
                yield chunk(ChunkChoice(index=0, delta=Delta(content=piece.text), finish_reason=None))
                piece = await anext(pieces)
            yield chunk(ChunkChoice(index=0, delta=Delta(), finish_reason=piece.finish_reason))
    except CaesuraError as error:
        logger.exception("a stream broke off")
        yield f"data: {json.dumps(error_body(error))}\n\n"
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
