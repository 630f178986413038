"""`/responses`: whole answers and streams, kept for whoever goes on from them; read, list the input, delete."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.responses import Response as HttpResponse

from caesura.api.admission import PlacesDependency
from caesura.api.asked import check_stream_options, find_answering, json_answer, until_finished
from caesura.api.explain import quote
from caesura.api.leaving import unless_client_leaves
from caesura.api.response_items import Items, to_items, to_messages
from caesura.api.response_making import Event, ResponseMaking
from caesura.api.route import Route
from caesura.api.sse import event, open_stream
from caesura.api.state import Limit, QueryText, Server, ServerDependency
from caesura.api.tools import Form, check_tools
from caesura.errors import InvalidRequest, NotFound
from caesura.ids import new_id
from caesura.inference.engine import ChatRequest, Engine, Piece
from caesura.schema.chat import ANY_OBJECT
from caesura.schema.common import PageWithIds
from caesura.schema.files import Deleted
from caesura.schema.responses import (
    LOGPROBS,
    ChosenFunction,
    CreateResponse,
    Format,
    FunctionTool,
    JsonObjectFormat,
    JsonSchemaFormat,
    Response,
    TextFormat,
)
from caesura.store.responses import StoredResponse

router = APIRouter(prefix="/v1/responses", route_class=Route)

MAX_ITEMS_PAGE = 100
_TOOLS = Form("tools", "tool_choice", "tools[{}].name", "tool_choice.name")
#: The engine speaks of chats: its words → those of this endpoint, in the order in which they are replaced.
_WORDS = (("response_format.json_schema", "text.format"), ("response_format", "text.format"), ("].function", "]"))


@dataclass(frozen=True, slots=True)
class _Asked:
    request: ChatRequest
    making: ResponseMaking
    input_items: Items


@router.post("", response_model=None)
async def create(
    body: CreateResponse, request: Request, server: ServerDependency, places: PlacesDependency
) -> HttpResponse:
    check_stream_options(body)
    places.take()
    asked = await run_in_threadpool(_to_asked, body, server)
    making, pieces = asked.making, _answer(server.engine, asked.request)
    if body.stream:
        return await open_stream(
            request,
            pieces,
            lambda pieces: _write_events(server, asked, pieces),
            lambda fault: "".join(map(_write, making.fail(fault))),
        )
    await unless_client_leaves(request, _make(making, pieces))
    await _keep(server, asked)
    return json_answer(making.response)


async def _answer(engine: Engine, request: ChatRequest) -> AsyncGenerator[Piece, None]:
    """The pieces of one answer. What the engine finds wrong is told in this endpoint's words."""
    async with aclosing(until_finished(engine.generate(request), 1)) as pieces:
        try:
            async for piece in pieces:
                yield piece
        except InvalidRequest as fault:
            raise _reword(fault) from fault


def _reword(fault: InvalidRequest) -> InvalidRequest:
    message, param = fault.message, fault.param or ""
    for theirs, ours in _WORDS:
        message, param = message.replace(theirs, ours), param.replace(theirs, ours)
    return InvalidRequest(message, param="input" if param.startswith("messages") else param or None, code=fault.code)


async def _make(making: ResponseMaking, pieces: AsyncGenerator[Piece, None]) -> None:
    async with aclosing(pieces):
        async for piece in pieces:
            making.add(piece)


async def _write_events(
    server: Server, asked: _Asked, pieces: AsyncGenerator[Piece, None]
) -> AsyncGenerator[str, None]:
    for told in asked.making.begin():
        yield _write(told)
    async for piece in pieces:
        for told in asked.making.add(piece):
            yield _write(told)
    await _keep(server, asked)  # whoever reads of the end may go on from the response at once
    for told in asked.making.end():
        yield _write(told)


def _write(told: Event) -> str:
    return event(told, told["type"])


async def _keep(server: Server, asked: _Asked) -> None:
    response = asked.making.response
    if response.store:
        stored = StoredResponse(response.model_dump(), asked.input_items)
        await run_in_threadpool(server.store.responses.create, stored)


def _to_asked(body: CreateResponse, server: Server) -> _Asked:
    answering = find_answering(server, body.model)
    tools = body.tools or []
    choice = body.tool_choice or "auto"
    check_tools(_TOOLS, tools, None if choice in ("none", "auto") else choice)
    input_items = to_items(body.input)
    request = ChatRequest(
        answering.base,
        answering.adapter,
        to_messages(body.instructions, [*_history(server, body.previous_response_id), *input_items]),
        max_tokens=body.max_output_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_logprobs=(body.top_logprobs or 0) if LOGPROBS in (body.include or ()) else None,
        tools=[_to_tool(tool) for tool in tools] if tools and choice != "none" else None,
        tool_choice=_to_choice(choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        json_schema=_json_schema(None if body.text is None else body.text.format),
    )
    return _Asked(request, ResponseMaking(_begin(body, answering.name, request)), input_items)


def _history(server: Server, response_id: str | None) -> Items:
    """What was said before, without instructions: they hold for their own response alone."""
    if response_id is None:
        return []
    try:
        chain = server.store.responses.chain(response_id)
    except NotFound as error:
        raise InvalidRequest(
            f"Previous response with id '{quote(response_id)}' not found. {error.message} It was never stored, was "
            "deleted, or has expired.",
            param="previous_response_id",
            code="previous_response_not_found",
        ) from error
    return [item for stored in chain for item in [*stored.input_items, *stored.response["output"]]]


def _to_tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": tool.type, "function": tool.model_dump(exclude_unset=True, exclude={"type"})}


def _to_choice(choice: str | ChosenFunction) -> Literal["auto", "required"] | tuple[Literal["function"], str]:
    if isinstance(choice, ChosenFunction):
        return ("function", choice.name)
    return "required" if choice == "required" else "auto"


def _json_schema(format: Format | None) -> dict[str, Any] | None:
    """The schema of the answer; None: it is plain text."""
    if isinstance(format, JsonSchemaFormat):
        return format.schema_
    return ANY_OBJECT if isinstance(format, JsonObjectFormat) else None


def _begin(body: CreateResponse, model: str, request: ChatRequest) -> Response:
    """The response before its first piece."""
    format = TextFormat(type="text") if body.text is None or body.text.format is None else body.text.format
    choice = body.tool_choice or "auto"
    return Response(
        id=new_id("resp_"),
        created_at=int(time.time()),
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        model=model,
        parallel_tool_calls=request.parallel_tool_calls,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        safety_identifier=body.safety_identifier,
        store=body.store is not False,
        temperature=request.temperature,
        text={"format": format.model_dump(by_alias=True, exclude_unset=True)},
        tool_choice=choice.model_dump() if isinstance(choice, ChosenFunction) else choice,
        tools=[tool.model_dump() for tool in body.tools or ()],
        top_logprobs=body.top_logprobs or 0,
        top_p=request.top_p,
        user=body.user,
        metadata=body.metadata,
    )


@router.get("/{response_id}")
def retrieve(response_id: str, server: ServerDependency, stream: bool = False) -> HttpResponse:
    if stream:
        raise InvalidRequest(
            "A stored response is whole, and not streamed again. Leave 'stream' out.",
            param="stream",
            code="invalid_value",
        )
    return JSONResponse(server.store.responses.get(response_id).response)


@router.delete("/{response_id}")
def delete(response_id: str, server: ServerDependency) -> Deleted:
    server.store.responses.delete(response_id)
    return Deleted(id=response_id, object="response")


@router.get("/{response_id}/input_items")
def list_input_items(
    response_id: str,
    server: ServerDependency,
    after: QueryText = None,
    limit: Limit = 20,
    order: Literal["asc", "desc"] = "desc",
) -> PageWithIds[dict[str, Any]]:
    items = server.store.responses.get(response_id).input_items
    if order == "desc":
        items = items[::-1]
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequest(
                f"Invalid 'after': response {response_id} has no input item '{quote(after)}'.", param="after"
            )
        items = items[ids.index(after) + 1 :]
    page = items[: min(limit, MAX_ITEMS_PAGE)]
    ids = [item["id"] for item in page] or [None]
    return PageWithIds(data=page, has_more=len(items) > len(page), first_id=ids[0], last_id=ids[-1])
