"""How an endpoint is called: by the framework, but for two detours that cost more than a short answer does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, get_args, get_type_hints

from fastapi.params import Depends
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

Endpoint = Callable[..., Any]
Dependency = Callable[[Request], Coroutine[Any, Any, Any]]


class Route(APIRoute):
    """An endpoint that blocks goes through a thread once: the framework would check its answer in a second one.

    An `async` endpoint whose parameters are all texts of the path, or dependencies that are functions of the request
    (`state`), and which is annotated with the model of its answer, is called without the framework's solving.
    """

    def __init__(self, path: str, endpoint: Endpoint, **given: Any) -> None:
        super().__init__(path, endpoint if inspect.iscoroutinefunction(endpoint) else _in_thread(endpoint), **given)
        dependencies = _find_dependencies(self.endpoint, set(self.param_convertors))
        if dependencies is not None:
            self.app = _call_directly(self.endpoint, dependencies)


def _call_directly(endpoint: Endpoint, dependencies: dict[str, Dependency]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        given = {name: await dependency(request) for name, dependency in dependencies.items()}
        value: BaseModel = await endpoint(**request.path_params, **given)
        response = Response(value.model_dump_json(by_alias=True), media_type="application/json")
        await response(scope, receive, send)

    return app


def _in_thread(endpoint: Endpoint) -> Endpoint:
    @wraps(endpoint)
    async def call(**given: Any) -> Any:
        return await run_in_threadpool(endpoint, **given)

    return call


def _find_dependencies(endpoint: Endpoint, in_path: set[str]) -> dict[str, Dependency] | None:
    """Parameter → the function of the request that makes its value; None where more is needed than that."""
    hints = get_type_hints(endpoint, include_extras=True)
    answer = hints.pop("return", None)
    is_plain = isinstance(answer, type) and issubclass(answer, BaseModel) and not hasattr(endpoint, "__wrapped__")
    found = {name: _find_dependency(hint) for name, hint in hints.items() if name not in in_path}
    known = {name: dependency for name, dependency in found.items() if dependency is not None}
    are_texts = all(hints.get(name) is str for name in in_path)
    return known if is_plain and are_texts and known.keys() == found.keys() else None


def _find_dependency(hint: Any) -> Dependency | None:
    for extra in get_args(hint)[1:]:
        call = extra.dependency if isinstance(extra, Depends) else None
        if inspect.iscoroutinefunction(call) and list(inspect.signature(call).parameters) == ["request"]:
            return call
    return None
