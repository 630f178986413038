"""`response_format`: what of it reaches the engine, and what the real engine makes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

from caesura.app import build_app, build_server
from caesura.settings import Settings
from tests.api.service import KEY, EngineDouble, Service, error_of

T = TypeVar("T")

MESSAGES: Any = [{"role": "user", "content": "Review this line as JSON: The sun rose over the sea."}]
#: Of the parameter, in errors.
PATH = "response_format.json_schema"
SCHEMA = {"type": "object", "properties": {"a": {"const": None}}, "required": ["a"]}


class Review(BaseModel):
    verdict: Literal["good", "bad"]
    stars: int = Field(ge=0, le=5)
    reasons: list[Literal["rhyme", "rhythm", "image"]] = Field(max_length=3)


def post(service: Service, format: Any) -> httpx.Response:
    body = {"model": "caesura-tiny", "messages": MESSAGES, "response_format": format}
    return service.http.post("/v1/chat/completions", json=body)


def nested(depth: int) -> dict[str, Any]:
    """A schema of that many levels, each of them an object."""
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


def wide(num_objects: int) -> dict[str, Any]:
    return {"anyOf": [{} for _ in range(num_objects - 1)]}


@pytest.mark.parametrize(
    ("format", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "a-B_1", "schema": SCHEMA}}, SCHEMA),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "strict": False, "description": "", "schema": {}}},
            {},
        ),
        ({"type": "json_schema", "json_schema": {"name": "n", "strict": None}}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": nested(100)}}, nested(100)),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": wide(1000)}}, wide(1000)),
    ],
)
def test_the_engine_is_asked_for_the_schema(service: Service, engine: EngineDouble, format: Any, schema: Any) -> None:
    assert post(service, format).status_code == 200

    assert engine.requests[0].json_schema == schema


@pytest.mark.parametrize(
    ("format", "param", "code", "text"),
    [
        ({"type": "json_schema"}, PATH, "missing_required_parameter", f"Missing required parameter: '{PATH}'."),
        ({"type": "text", "json_schema": {"name": "n"}}, PATH, None, f"The '{PATH}' parameter is only allowed when"),
        ({"type": "json_object", "json_schema": {"name": "n"}}, PATH, None, f"The '{PATH}' parameter is only"),
        ({}, "response_format.type", "missing_required_parameter", "Missing required parameter: 'response_format.type"),
        (
            {"type": "json_schema", "json_schema": {"schema": {}}},
            f"{PATH}.name",
            "missing_required_parameter",
            "Missing required",
        ),
        *(
            (
                {"type": "json_schema", "json_schema": {"name": name}},
                f"{PATH}.name",
                "invalid_value",
                f"Invalid value for '{PATH}.name': ",
            )
            for name in ("", "a b", "é", "a\n", "x" * 65)
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": True}},
            f"{PATH}.schema",
            "invalid_type",
            f"Invalid type for '{PATH}.schema': expected an object, but got a boolean",
        ),
        *(
            (
                {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
                f"{PATH}.schema",
                "invalid_value",
                f"Invalid value for '{PATH}.schema': a schema may hold 1000 objects, nested 100 deep",
            )
            for schema in (nested(101), wide(1001), {"enum": [[[None] * 5] * 5, nested(99)]})
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "properties": {}}},
            f"{PATH}.properties",
            "unknown_parameter",
            "Unknown",
        ),
    ],
)
def test_a_faulty_format_is_a_400_that_names_the_parameter(
    idle_service: Service, format: Any, param: str, code: str | None, text: str
) -> None:
    answer = post(idle_service, format)

    assert answer.status_code == 400
    error = error_of(answer)
    assert error["message"].startswith(text), error["message"]
    assert (error["param"], error["code"]) == (param, code)


class RealServer:
    """A server with the real engine, and the official client of it, in a loop of their own."""

    def __init__(self, folder: Path) -> None:
        self._runner = asyncio.Runner()
        self._resources = AsyncExitStack()
        self.client = self._runner.run(self._open(folder))

    async def _open(self, folder: Path) -> AsyncOpenAI:
        server = build_server(Settings(data_dir=folder, threads=1, warm_spare=False))
        app = build_app(server, KEY)
        await self._resources.enter_async_context(app.router.lifespan_context(app))
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app), timeout=60)
        return await self._resources.enter_async_context(
            AsyncOpenAI(base_url="http://caesura/v1", api_key=KEY, http_client=http, max_retries=0)
        )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def close(self) -> None:
        self.run(self._resources.aclose())
        self._runner.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    server = RealServer(tmp_path_factory.mktemp("real"))
    yield server
    server.close()


@pytest.mark.parametrize("seed", range(5))
def test_the_sdk_parses_the_answer_into_the_class_that_it_was_asked_for(real: RealServer, seed: int) -> None:
    answer = real.run(
        real.client.chat.completions.parse(
            model="caesura-tiny", messages=MESSAGES, response_format=Review, temperature=2, seed=seed
        )
    )

    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Review)


@pytest.mark.parametrize("seed", range(5))
def test_any_object_is_an_object(real: RealServer, seed: int) -> None:
    answer = real.run(
        real.client.chat.completions.create(
            model="caesura-tiny",
            messages=MESSAGES,
            response_format={"type": "json_object"},
            seed=seed,
            max_completion_tokens=1000,
        )
    )

    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_a_stream_and_a_whole_answer_are_the_same_and_of_the_schema(real: RealServer) -> None:
    async def texts() -> tuple[str, str]:
        create = partial(
            real.client.chat.completions.create,
            model="caesura-tiny",
            messages=MESSAGES,
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": Review.model_json_schema()}},
            seed=3,
        )
        whole = await create()
        pieces = [chunk.choices[0].delta.content or "" async for chunk in await create(stream=True)]
        assert len(pieces) > 5
        return whole.choices[0].message.content or "", "".join(pieces)

    whole, streamed = real.run(texts())

    assert whole == streamed
    Review.model_validate_json(whole)


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_held_to_is_a_400(real: RealServer, stream: bool) -> None:
    schema = {"type": "array", "uniqueItems": True}

    with pytest.raises(openai.BadRequestError, match="uniqueItems") as raised:
        real.run(
            real.client.chat.completions.create(
                model="caesura-tiny",
                messages=MESSAGES,
                response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
                stream=stream,
            )
        )

    assert raised.value.param == f"{PATH}.schema"


@pytest.mark.parametrize("step", ["$ref", "properties", "allOf"])
def test_the_largest_schema_that_is_taken_does_not_end_the_engine(real: RealServer, step: str) -> None:
    """Its levels follow one from the other, as far as the number of objects allows."""
    steps: dict[str, tuple[int, Callable[[str], Any]]] = {
        "$ref": (990, lambda ref: {"$ref": ref}),
        "properties": (330, lambda ref: {"properties": {"x": {"$ref": ref}}}),
        "allOf": (330, lambda ref: {"allOf": [{"anyOf": [{"$ref": ref}]}]}),
    }
    num_steps, make = steps[step]
    levels = {f"d{index}": make(f"#/$defs/d{index + 1}") for index in range(num_steps)}
    schema = {"$defs": levels | {f"d{num_steps}": {"const": 1}}, "$ref": "#/$defs/d0"}

    async def ask() -> Any:
        return await real.client.chat.completions.create(
            model="caesura-tiny",
            messages=MESSAGES,
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
            max_completion_tokens=5,
        )

    assert real.run(ask()).choices[0].finish_reason in ("stop", "length")
