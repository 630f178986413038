"""The grader of a job of reinforcement, in the worker: opened with all that it works with, and closed again."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import TypeAdapter

from caesura.access import find_access
from caesura.graders.build import Tools, build_grader
from caesura.graders.calls import open_client, send
from caesura.graders.comparer import Comparer
from caesura.graders.grade import Grader, GraderFault
from caesura.graders.judges import Judge, Judges, find_judge
from caesura.graders.sandbox import Level, Sandbox, find_level
from caesura.graders.tool_servers import ToolServers
from caesura.jobs import Job
from caesura.schema.graders import AnyGrader
from caesura.schema.jobs import ToolServer
from caesura.settings import Settings
from caesura.store import Store
from caesura.training.grading import Grading

_GRADER: TypeAdapter[AnyGrader] = TypeAdapter(AnyGrader)


def open_grading(job: Job, settings: Settings, store: Store, on_waiting: Callable[[str], None]) -> Grading:
    """A context in which the answers of the job are graded."""
    spec = _GRADER.validate_python(job.method["reinforcement"]["grader"])

    @asynccontextmanager
    async def open_grader() -> AsyncGenerator[Grader, None]:
        transport = OwnServer(settings.data_dir)
        async with httpx.AsyncClient(transport=transport, base_url="http://own/v1", timeout=None) as own:
            tools = _open_tools(settings, store.of(job.project), own, job.project)
            try:
                yield build_grader(spec, tools, "method.reinforcement.grader")
            finally:
                await tools.close()

    return Grading(open_grader, on_waiting)


@contextmanager
def open_tool_servers(job: Job, settings: Settings, grading: Grading) -> Generator[ToolServers | None, None, None]:
    """The tools that the job's answers may call over HTTP; None where it has none."""
    tools = [ToolServer.model_validate(tool) for tool in job.method["reinforcement"].get("tools", ())]
    if not tools:
        yield None
        return
    client = open_client(max_idle_connections=0)
    try:
        yield ToolServers(tools, settings.allowed_tool_hosts, client)
    finally:
        grading.run(client.aclose()).result()


class OwnServer(httpx.AsyncBaseTransport):
    """Sends each request to the server of this data folder, wherever it is now, with the key of its workers."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._transport = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        access = find_access(self._data_dir)
        if access is None:
            raise httpx.ConnectError("the server of this data folder is not running", request=request)
        url = httpx.URL(access.url)
        request.url = request.url.copy_with(scheme=url.scheme, host=url.host, port=url.port)
        request.headers["host"] = url.netloc.decode()
        request.headers["authorization"] = f"Bearer {access.key}"
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()


def _open_tools(settings: Settings, store: Store, own: httpx.AsyncClient, project: str) -> Tools:
    level = find_level()

    async def embed(texts: list[str]) -> list[list[float]]:
        return await _embed(own, {"model": settings.embedding_model, "input": texts})

    def find(name: str) -> Judge | None:
        is_own = settings.resolve_base(name) is not None or store.models.find(name) is not None
        return find_judge(settings, name, own_project=project if is_own else None)

    return Tools(
        judges=Judges(own),
        comparer=Comparer(),
        find_judge=find,
        sandbox=None if level is Level.NONE else Sandbox(level),
        client=open_client(max_idle_connections=0),
        embed=None if settings.embedding_model is None else embed,
        allowed_private_hosts=tuple(settings.allowed_private_hosts),
    )


async def _embed(own: httpx.AsyncClient, body: dict[str, Any]) -> list[list[float]]:
    headers = {"content-type": "application/json"}
    request = own.build_request("POST", "/embeddings", headers=headers, content=json.dumps(body).encode())
    try:
        reply = await send(own, request)
    except httpx.TransportError:
        raise _no_embedding("the server cannot be reached", is_unreachable=True) from None
    if reply.status != 200:
        raise _no_embedding(f"the server answered with status {reply.status}", is_unreachable=reply.status >= 500)
    return [one["embedding"] for one in json.loads(reply.body)["data"]]


def _no_embedding(words: str, *, is_unreachable: bool) -> GraderFault:
    return GraderFault("other_error", details=f"No embedding came: {words}.", is_unreachable=is_unreachable)
