"""The server as its clients see it, over HTTP; only what trains and what answers chat are doubles."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from openai import OpenAI
from starlette.types import ASGIApp, Receive, Scope, Send

from caesura.api.state import Server
from caesura.app import build_app
from caesura.executors import WorkerExit
from caesura.graders.sandbox import Level, find_level
from caesura.ids import new_token
from caesura.inference.engine import (
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Finished,
    Piece,
    Text,
)
from caesura.jobs import Artifact, File, Job, Lease, Reason, TrainingState
from caesura.protocol import BoundedHttpProtocol
from caesura.scheduler import Scheduler
from caesura.settings import Settings
from caesura.storage import LocalStorage, put_files
from caesura.store import Store, open_store
from caesura.store.files import new_file
from caesura.store.rows import Telling

KEY = "sk-test-abcdefghijklmnopqrstuvwxyz"
#: The longest that a test waits for what it expects.
PATIENCE_S = 30.0
ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
PROMPT = {"messages": [{"role": "user", "content": "1?"}], "answer": "1"}
CHECK = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
RESULTS = b"step,train_loss\n1,0.5\n"


@dataclass
class Waiting:
    """In the place of a piece: the engine is still at it, until the test says that it is `over`."""

    over: threading.Event = field(default_factory=threading.Event)


@dataclass
class EngineDouble:
    """Answers the next requests by `next_pieces`, each by one list, and every other by `pieces`; an exception among
    them is raised. An answer that nobody closes stays open.
    """

    pieces: list[Piece | Exception | Waiting] = field(
        default_factory=lambda: [Text("Hello"), Text(" world"), Finished("stop", 5, 2)]
    )
    next_pieces: list[list[Piece | Exception | Waiting]] = field(
        default_factory=list[list[Piece | Exception | Waiting]]
    )
    requests: list[Any] = field(default_factory=list[Any])
    embed_requests: list[EmbedRequest] = field(default_factory=list[EmbedRequest])
    answers: list[AsyncGenerator[Piece, None]] = field(default_factory=list[AsyncGenerator[Piece, None]])
    waits: threading.Event = field(default_factory=threading.Event)
    is_done: threading.Event = field(default_factory=threading.Event)

    def generate(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[Piece, None]:
        self.requests.append(request)
        self.answers.append(self._answer(self.next_pieces.pop(0) if self.next_pieces else self.pieces))
        return self.answers[-1]

    async def _answer(self, pieces: list[Piece | Exception | Waiting]) -> AsyncGenerator[Piece, None]:
        try:
            for piece in pieces:
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, Waiting):
                    self.waits.set()
                    while not piece.over.is_set():
                        await asyncio.sleep(0.005)
                else:
                    yield piece
        finally:
            self.is_done.set()

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """The length of each input as the angle of its embedding: in radians, a hundred characters to one."""
        self.embed_requests.append(request)
        lengths = [len(given) for given in request.inputs]
        vectors = [[math.cos(length / 100), math.sin(length / 100)] for length in lengths]
        return Embeddings(vectors, sum(lengths))

    async def close(self) -> None:
        pass


@dataclass
class ExecutorDouble:
    """Starts nothing."""

    started: list[str] = field(default_factory=list[str])
    is_closed: bool = False

    def start(self, job_id: str) -> str:
        self.started.append(job_id)
        return f"worker-of-{job_id}"

    def tick(self) -> list[WorkerExit]:
        return []

    def close(self) -> None:
        self.is_closed = True


class HttpServer:
    """uvicorn in a thread, on a free port. Which application answers is up to the test."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.origin = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            self._answer,
            http=BoundedHttpProtocol,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """In the server's own loop, which it has once it has answered anything."""
        if self._loop is None:
            asyncio.run(work)
        else:
            asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        self._loop = asyncio.get_running_loop()
        await self.app(scope, receive, send)


@dataclass
class Service:
    """A server with an empty data folder. Its scheduler looks at the database when the test says so."""

    server: Server
    app: FastAPI
    engine: EngineDouble
    executor: ExecutorDouble
    client: OpenAI
    http: httpx.Client
    http_server: HttpServer

    def close(self) -> None:
        self.http_server.run(self.app.state.grader_tools.close())
        self.store.close()

    @property
    def store(self) -> Store:
        return self.server.store

    def upload(self, data: bytes | None = None, name: str = "train.jsonl", purpose: Any = "fine-tune") -> str:
        """Ten good rows, or `data`; returns the file's id."""
        return self.client.files.create(file=(name, rows() if data is None else data), purpose=purpose).id

    def create_job(self, **body: Any) -> str:
        body = {"model": "caesura-tiny"} | body
        if "training_file" not in body:
            body["training_file"] = self.upload()
        return self.client.fine_tuning.jobs.create(**body).id

    def reinforced(self) -> dict[str, Any]:
        """Of the body of a job of reinforcement: all but the model."""
        file = self.upload(rows(row=PROMPT))
        method = {"type": "reinforcement", "reinforcement": {"grader": CHECK}}
        return {"training_file": file, "validation_file": file, "method": method}

    def validate(self) -> None:
        self.server.scheduler.tick()

    def start_job(self, **body: Any) -> tuple[Job, Lease]:
        """A running job, and the lease of the worker that there would be."""
        job_id = self.create_job(**body)
        self.validate()
        claimed = self.store.attempts.claim(job_id, "worker-here", 60)
        assert claimed is not None
        return claimed

    def train(self, lease: Lease, *steps: int, took_s: float = 0.3) -> None:
        """Tell the metrics of the steps, as a worker does, each of which took so long."""
        tellings = [
            Telling(
                f"Step {step}/9: training loss=0.50",
                type="metrics",
                key=f"step:{step}",
                data={"step": step, "total_steps": 9, "train_loss": 0.5, "valid_loss": None},
            )
            for step in steps
        ]
        steps_s = {f"step:{step}": took_s for step in steps}
        self.store.attempts.record_steps(lease, max(steps), tellings, int(time.time()) + 60, took_s=steps_s)

    def save(self, lease: Lease, step: int, reason: Reason = Reason.EPOCH) -> None:
        self.store.attempts.save(lease, self.state(step), reason)

    def finish(self, lease: Lease, step: int) -> None:
        self.store.attempts.finish(lease, step, self.adapter(), [self.results()], trained_tokens=1234)

    def adapter(self) -> Artifact:
        return put_files(self.server.storage, "adapters", {"adapter_model.safetensors": b"weights"})

    def state(self, step: int) -> TrainingState:
        return TrainingState(step, self.adapter(), self.adapter())

    def results(self) -> File:
        with self.server.storage.writer(f"files/{new_token()}") as writer:
            writer.write(RESULTS)
        return new_file(writer.blob, "step_metrics.csv", "fine-tune-results")

    def messages(self, job_id: str) -> list[str]:
        """The job's events, oldest first."""
        return [event.message for event in self.client.fine_tuning.jobs.list_events(job_id)][::-1]

    def blobs(self) -> list[str]:
        return [key for key, _ in self.server.storage.list()]


def build_service(
    settings: Settings,
    http_server: HttpServer,
    client: OpenAI,
    http: httpx.Client,
    sandbox_level: Level | None = None,
) -> Service:
    store = open_store(settings.data_dir, settings.secret_database_url)
    store.keys.adopt(settings.organization)
    storage = LocalStorage(settings.data_dir / "blobs")
    executor, engine = ExecutorDouble(), EngineDouble()
    scheduler = Scheduler(store, storage, settings.slots, lambda _wake: executor)
    level = sandbox_level or find_sandbox_level()
    server = Server(
        settings, store, storage, scheduler, engine, level, worker_key="worker-key", started_at=int(time.time())
    )
    http_server.app = app = build_app(server, KEY)
    return Service(server, app, engine, executor, client, http, http_server)


@cache
def find_sandbox_level() -> Level:
    return find_level()


def rows(number: int = 10, row: dict[str, Any] = ROW) -> bytes:
    return (json.dumps(row) + "\n").encode() * number


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look every few milliseconds until `condition` holds."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_at, f"waited {PATIENCE_S:.0f} s in vain: {what}"
        time.sleep(0.005)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which has OpenAI's form and the headers of every answer."""
    body = response.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    return error


def assert_shape(value: Any, shape: dict[str, Any]) -> None:
    """`value` has the keys of `shape`, no more and no less, and under each a value of its type."""
    assert value.keys() == shape.keys()
    for key, kind in shape.items():
        if isinstance(kind, dict):
            assert_shape(value[key], kind)
        elif isinstance(kind, list):
            for item in value[key]:
                assert_shape(item, kind[0])
        else:
            assert isinstance(value[key], kind), (key, value[key])
            assert kind is bool or not isinstance(value[key], bool), (key, value[key])
