from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from caesura.errors import BlobDamaged, InvalidRequest
from caesura.inference.engine import (
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
    Finished,
    Piece,
    Text,
    ToolArguments,
    ToolCall,
)
from caesura.inference.generation import Generation
from caesura.inference.library import Library
from caesura.inference.server import EmbedEndpoint, GenerateEndpoint, create_app
from caesura.inference.wire import (
    decode_embeddings,
    decode_piece,
    encode_embed_request,
    encode_request,
)
from tests.inference.making import make

REQUEST = ChatRequest("micro", None, [{"role": "user", "content": "Hi"}], temperature=0, max_tokens=5)
ENDLESS = replace(REQUEST, base="endless", max_tokens=None)
EMBED = EmbedRequest(["the"], "micro")
#: In the place of a piece: it never comes.
NEVER = "never"


@dataclass
class Scripted:
    """In the place of a Generation: tells what it was given; an exception among it is raised."""

    pieces: list[Any] = field(default_factory=list[Any])
    requests: list[Any] = field(default_factory=list[Any])
    is_asked: asyncio.Event = field(default_factory=asyncio.Event)
    is_left: bool = False

    async def generate(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[Piece, None]:
        self.requests.append(request)
        self.is_asked.set()
        try:
            for piece in self.pieces:
                yield await self._told(piece)
        except (asyncio.CancelledError, GeneratorExit):
            self.is_left = True
            raise

    async def embed(self, request: EmbedRequest) -> Embeddings:
        self.requests.append(request)
        self.is_asked.set()
        try:
            return await self._told(*self.pieces)
        except asyncio.CancelledError:
            self.is_left = True
            raise

    async def _told(self, piece: Any) -> Any:
        if isinstance(piece, Exception):
            raise piece
        if piece == NEVER:
            await asyncio.Event().wait()
        return piece


class Client:
    """An HTTP client of an ASGI application, at its other end."""

    def __init__(self, request: ChatRequest | CompletionRequest | EmbedRequest) -> None:
        is_embed = isinstance(request, EmbedRequest)
        body = encode_embed_request(request) if is_embed else encode_request(request)
        self._received = asyncio.Queue[dict[str, Any]]()
        self._received.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self.sent: list[dict[str, Any]] = []
        self.has_body = asyncio.Event()

    async def receive(self) -> Any:
        return await self._received.get()

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self.has_body.set()

    def leave(self) -> None:
        self._received.put_nowait({"type": "http.disconnect"})

    async def ask(self, endpoint: GenerateEndpoint | EmbedEndpoint) -> None:
        await endpoint({"type": "http", "method": "POST"}, self.receive, self.send)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def lines(self) -> list[str]:
        """One for each message of the body but the last, which is empty and ends it."""
        *bodies, last = self.sent[1:]
        assert last == {"type": "http.response.body", "body": b""}
        lines = [line for message in bodies for line in message["body"].decode().splitlines()]
        assert len(lines) == len(bodies)
        return lines

    @property
    def error(self) -> dict[str, Any]:
        """That of the last line."""
        return json.loads(self.lines[-1])["error"]


def endpoint(generation: Any, request: Any) -> GenerateEndpoint | EmbedEndpoint:
    return EmbedEndpoint(generation) if isinstance(request, EmbedRequest) else GenerateEndpoint(generation)


def ask(request: Any, *pieces: Any) -> Client:
    """The client, once it was answered with these pieces."""

    async def run() -> Client:
        client, generation = Client(request), Scripted(list(pieces))
        await client.ask(endpoint(generation, request))
        assert generation.requests == [request]
        assert not generation.is_left
        return client

    return asyncio.run(run())


def test_an_answer_is_its_pieces_line_by_line() -> None:
    pieces: list[Piece] = [
        Text("a\u2028"),
        ToolCall(0, "f"),
        ToolArguments(0, "{"),
        Text("b", 1),
        Finished("stop", 1, 4),
    ]

    client = ask(REQUEST, *pieces)

    assert client.status == 200
    assert [decode_piece(line) for line in client.lines] == pieces


@pytest.mark.parametrize("request_", [REQUEST, CompletionRequest("micro", None, "Hi"), EMBED])
def test_an_error_before_anything_is_told_decides_the_status(request_: Any) -> None:
    client = ask(request_, InvalidRequest("Too long.", param="messages", code="context_length_exceeded"))

    assert client.status == 400
    assert client.error == {
        "class": "InvalidRequest",
        "message": "Too long.",
        "param": "messages",
        "code": "context_length_exceeded",
    }


def test_an_error_in_the_middle_of_an_answer_is_its_last_line() -> None:
    client = ask(REQUEST, Text("a"), BlobDamaged("The stored file is damaged."))

    assert client.status == 200
    assert decode_piece(client.lines[0]) == Text("a")
    assert len(client.lines) == 2
    assert client.error["class"] == "BlobDamaged"


@pytest.mark.parametrize("request_", [REQUEST, EMBED])
def test_an_unexpected_exception_is_logged_with_its_trace_and_answered_without(
    request_: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = ask(request_, RuntimeError("a secret of the machine"))

    assert client.status == 500
    assert "secret" not in str(client.lines)
    assert "Traceback" in caplog.text
    assert "a secret of the machine" in caplog.text


def test_embeddings_are_one_line() -> None:
    embeddings = Embeddings([[0.1, -1e-30], [1.0, 0.0]], 7)

    client = ask(EMBED, embeddings)

    assert client.status == 200
    assert [decode_embeddings(line) for line in client.lines] == [embeddings]


@pytest.mark.parametrize(("request_", "pieces"), [(REQUEST, [NEVER]), (REQUEST, [Text("a"), NEVER]), (EMBED, [NEVER])])
def test_a_client_that_goes_away_leaves_the_generation_and_gets_nothing_more(request_: Any, pieces: list[Any]) -> None:
    async def run() -> None:
        client, generation = Client(request_), Scripted(pieces)
        asked = asyncio.create_task(client.ask(endpoint(generation, request_)))
        await (client.has_body if len(pieces) > 1 else generation.is_asked).wait()
        client.leave()
        await asked
        assert generation.is_left
        assert len(client.sent) == (2 if len(pieces) > 1 else 0)

    asyncio.run(run())


def test_a_client_that_goes_away_in_the_middle_of_an_answer_frees_its_place(library: Library) -> None:
    async def run() -> None:
        generation = Generation(library)
        client = Client(ENDLESS)
        asked = asyncio.create_task(client.ask(GenerateEndpoint(generation)))
        await client.has_body.wait()
        client.leave()
        await asked
        other = Client(REQUEST)
        await other.ask(GenerateEndpoint(generation))
        assert other.status == 200
        assert not any(batch.members for batch in generation._computing._batches.values())

    asyncio.run(run())


def test_a_slow_client_holds_up_nobody(library: Library) -> None:
    """It does not read: what it is sent waits."""

    class SlowClient(Client):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

    async def run() -> Client:
        generation = Generation(library)
        slow, quick = SlowClient(ENDLESS), Client(REQUEST)
        asked = asyncio.create_task(slow.ask(GenerateEndpoint(generation)))
        await slow.has_body.wait()
        await quick.ask(GenerateEndpoint(generation))
        slow.leave()
        await asked
        return quick

    assert len(asyncio.run(run()).lines) > 1


def test_the_application_answers_requests_of_every_kind(library: Library) -> None:
    completion = CompletionRequest("micro", None, [5, 6], temperature=0, max_tokens=3, echo=True, top_logprobs=1)

    async def run() -> None:
        transport = httpx.ASGITransport(create_app(library))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            assert (await client.get("/healthz")).status_code == 200
            for request in (REQUEST, completion):
                response = await client.post("/generate", content=encode_request(request))
                assert [decode_piece(line) for line in response.text.splitlines()] == make(library, request)
            response = await client.post("/embed", content=encode_embed_request(EMBED))
            assert len(decode_embeddings(response.text).vectors) == 1
            assert (await client.get("/generate")).status_code == 405

    asyncio.run(run())
