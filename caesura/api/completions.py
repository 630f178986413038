"""`/completions`: the continuations of one or more texts."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from caesura.api.admission import PlacesDependency
from caesura.api.asked import (
    Answering,
    check_stream_options,
    collect,
    find_answering,
    json_answer,
    sampling_of,
    until_finished,
)
from caesura.api.completion_answers import Telling, whole_answer, write_chunks
from caesura.api.interleave import interleave
from caesura.api.leaving import unless_client_leaves
from caesura.api.route import Route
from caesura.api.sse import open_stream
from caesura.api.state import ServerDependency
from caesura.errors import InvalidRequest
from caesura.ids import new_id
from caesura.inference.engine import CompletionRequest, Engine, Piece
from caesura.schema.completions import CreateCompletion

router = APIRouter(prefix="/v1/completions", route_class=Route)

DEFAULT_MAX_TOKENS = 16


@router.post("", response_model=None)
async def create(
    body: CreateCompletion, request: Request, server: ServerDependency, places: PlacesDependency
) -> Response:
    check_stream_options(body)
    _check(body)
    prompts = _prompts_of(body)
    n = body.n or 1
    num_made = body.best_of or n
    total = len(prompts) * num_made
    places.take(total, param="prompt" if len(prompts) > 1 else "n" if body.best_of is None else "best_of")
    answering = await run_in_threadpool(find_answering, server, body.model)
    telling = Telling(
        id=new_id("cmpl-"),
        created=int(time.time()),
        model=answering.name,
        n=n,
        num_made=num_made,
        has_echo=body.echo is True,
        has_logprobs=body.logprobs is not None,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )
    pieces = _generate(server.engine, [_to_request(body, answering, prompt) for prompt in prompts])
    if body.stream:
        return await open_stream(request, until_finished(pieces, total), lambda pieces: write_chunks(telling, pieces))
    answers = await unless_client_leaves(request, collect(pieces, total))
    return json_answer(whole_answer(telling, answers))


def _check(body: CreateCompletion) -> None:
    n = body.n or 1
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequest(
            "Invalid 'max_tokens': 0 is only allowed when 'echo' is enabled: there would be no text.",
            param="max_tokens",
            code="integer_below_min_value",
        )
    if body.best_of is not None and body.best_of < n:
        raise InvalidRequest(
            f"Invalid 'best_of': integer below minimum value. Expected a value >= {n}, which is 'n', but got "
            f"{body.best_of} instead.",
            param="best_of",
            code="integer_below_min_value",
        )
    if body.stream and body.best_of is not None and body.best_of > n:
        raise InvalidRequest(
            f"The 'best_of' parameter cannot be above 'n' ({n}) when 'stream' is enabled: which answers are the best "
            "is known at their end.",
            param="best_of",
        )


def _prompts_of(body: CreateCompletion) -> Sequence[str | list[int]]:
    match body.prompt:
        case None:
            return [""]
        case str(text):
            return [text]
        case [int(), *_] as tokens:
            return [tokens]
        case prompts:
            return cast(Sequence[str | list[int]], prompts)


def _to_request(body: CreateCompletion, answering: Answering, prompt: str | list[int]) -> CompletionRequest:
    request = CompletionRequest(
        answering.base,
        answering.adapter,
        prompt,
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        echo=body.echo is True,
        # Without log-probabilities there is no telling which answers are the best.
        top_logprobs=0 if body.logprobs is None and body.best_of is not None else body.logprobs,
        **sampling_of(body),
    )
    return request if body.best_of is None else replace(request, n=body.best_of)


async def _generate(engine: Engine, requests: Sequence[CompletionRequest]) -> AsyncGenerator[Piece, None]:
    """The answers to all the prompts, indexed one prompt after the other."""
    async with aclosing(interleave([engine.generate(request) for request in requests])) as turns:
        async for place, piece in turns:
            yield replace(piece, index=place * requests[place].n + piece.index)
