from __future__ import annotations

import asyncio
import threading
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from caesura.api import route
from caesura.api.route import Route
from caesura.schema.common import Answer


class Told(Answer):
    text: str
    null: None = None


async def _header(request: Request) -> str:
    return request.headers["x-header"]


Header = Annotated[str, Depends(_header)]
router = APIRouter(route_class=Route)


@router.get("/plain/{name}")
async def plain(name: str, header: Header) -> Told:
    return Told(text=f"{name} ü {header}")


@router.get("/solved/{name}")
async def with_query(name: str, header: Header, limit: Annotated[int, Query(ge=1)] = 1) -> Told:
    return Told(text=f"{name} ü {header}")


@router.get("/blocking/{name}")
def blocking(name: str, header: Header) -> Told:
    assert threading.current_thread() is not threading.main_thread()
    return Told(text=f"{name} ü {header}")


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    app.include_router(router)
    return app


async def get(app: FastAPI, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        return await client.get(path, headers={"x-header": "h"})


@pytest.mark.parametrize("kind", ["plain", "solved", "blocking"])
def test_every_kind_of_endpoint_answers_the_same_bytes(app: FastAPI, kind: str) -> None:
    answer = asyncio.run(get(app, f"/{kind}/a%20b"))

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.text == '{"text":"a b ü h","null":null}'


def test_only_what_is_plain_is_called_without_the_framework() -> None:
    direct = {each.path: route._find_dependencies(each.endpoint, {"name"}) for each in router.routes}  # type: ignore[attr-defined]

    assert direct == {"/plain/{name}": {"header": _header}, "/solved/{name}": None, "/blocking/{name}": None}


def test_an_endpoint_that_blocks_goes_through_a_thread_once(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    async def count(function: object, *given: object, **named: object) -> object:
        calls.append(function)
        return await run_in_threadpool(function, *given, **named)  # type: ignore[arg-type]

    for module in ("caesura.api.route", "fastapi.routing", "fastapi.dependencies.utils"):
        monkeypatch.setattr(f"{module}.run_in_threadpool", count)
    assert asyncio.run(get(app, "/blocking/a")).status_code == 200

    assert calls == [blocking]
