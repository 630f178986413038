from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from caesura.errors import BlobDamaged
from caesura.inference import server
from caesura.inference.embedder import Embedder
from caesura.inference.engine import ChatRequest, Finished, Piece, Text
from caesura.inference.library import Library
from caesura.inference.server import ChatEndpoint, EmbedEndpoint, GenerationThread
from caesura.inference.wire import encode_request, encode_texts
from caesura.jobs import Artifact
from caesura.models.loading import Base
from caesura.settings import Settings
from caesura.storage import Storage

REQUEST = ChatRequest("micro", None, [{"role": "user", "content": "Hi"}], temperature=0, max_tokens=5)
ENDLESS = replace(REQUEST, base="endless", max_tokens=None)


class RecordingLibrary(Library):
    """Remembers which requests got their turn, by base."""

    def __init__(self, settings: Settings, storage: Storage) -> None:
        super().__init__(settings, storage)
        self.used: list[str] = []

    def use(self, base: str, adapter: Artifact | None) -> Base:
        self.used.append(base)
        return super().use(base, adapter)

    def embedder(self) -> Embedder:
        self.used.append("embedder")
        return super().embedder()


@pytest.fixture
def recording(settings: Settings, storage: Storage) -> RecordingLibrary:
    return RecordingLibrary(settings, storage)


async def finish(thread: GenerationThread, request: ChatRequest) -> Finished:
    *_, finished = [piece async for piece in thread.generate(request)]
    assert isinstance(finished, Finished)
    return finished


class Client:
    """An HTTP client of an ASGI application, at its other end."""

    def __init__(self, request: ChatRequest | list[str]) -> None:
        body = encode_request(request) if isinstance(request, ChatRequest) else encode_texts(request)
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

    async def ask(self, endpoint: ChatEndpoint | EmbedEndpoint) -> None:
        await endpoint({"type": "http", "method": "POST"}, self.receive, self.send)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for message in self.sent[1:] for line in message["body"].splitlines()]


def ask(library: Library, request: ChatRequest) -> Client:
    async def run() -> Client:
        client = Client(request)
        await client.ask(ChatEndpoint(GenerationThread(library)))
        return client

    return asyncio.run(run())


def test_requests_are_answered_in_the_order_in_which_they_came(library: Library) -> None:
    async def run() -> list[int]:
        thread = GenerationThread(library)
        order: list[int] = []

        async def one(index: int) -> None:
            # The first is the longest: it would be the last if they took turns.
            await finish(thread, replace(REQUEST, max_tokens=60 - 10 * index))
            order.append(index)

        await asyncio.gather(*(one(index) for index in range(5)))
        return order

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]


def test_leaving_early_frees_the_thread(library: Library) -> None:
    async def run() -> Finished:
        thread = GenerationThread(library)
        async with aclosing(thread.generate(ENDLESS)) as pieces:
            await anext(pieces)
        return await finish(thread, REQUEST)

    assert asyncio.run(run()).completion_tokens == 5


def test_a_request_that_left_while_it_waited_never_gets_a_turn(recording: RecordingLibrary) -> None:
    async def run() -> None:
        thread = GenerationThread(recording)
        async with aclosing(thread.generate(ENDLESS)) as running:
            await anext(running)
            waiting = asyncio.create_task(finish(thread, replace(REQUEST, base="never used")))
            await asyncio.sleep(0)  # it stands in the queue now
            waiting.cancel()
            await asyncio.wait([waiting])
        await finish(thread, REQUEST)

    asyncio.run(run())
    assert recording.used == ["endless", "micro"]


def test_a_client_that_goes_away_in_the_middle_of_an_answer_frees_the_thread(library: Library) -> None:
    async def run() -> Finished:
        thread = GenerationThread(library)
        client = Client(ENDLESS)
        asked = asyncio.create_task(client.ask(ChatEndpoint(thread)))
        await client.has_body.wait()
        client.leave()
        await asked
        return await finish(thread, REQUEST)

    assert asyncio.run(run()).completion_tokens == 5


def test_a_client_that_goes_away_before_its_turn_is_forgotten(recording: RecordingLibrary) -> None:
    async def run() -> Client:
        thread = GenerationThread(recording)
        client = Client(replace(REQUEST, base="never used"))
        async with aclosing(thread.generate(ENDLESS)) as running:
            await anext(running)
            client.leave()
            await client.ask(ChatEndpoint(thread))
        await finish(thread, REQUEST)
        return client

    assert asyncio.run(run()).sent == []
    assert recording.used == ["endless", "micro"]


def test_an_answer_is_its_pieces_line_by_line_without_empty_ones(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    script: list[Piece] = [Text(""), Text("a"), Text(""), Text("b"), Finished("stop", 1, 4)]
    monkeypatch.setattr(server, "generate", lambda base, request: iter(script))

    client = ask(library, REQUEST)

    assert client.status == 200
    finished = {"finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 4}
    assert client.lines == [{"text": "a"}, {"text": "b"}, finished]


def test_an_error_before_the_first_piece_decides_the_status(library: Library) -> None:
    client = ask(library, replace(REQUEST, messages=[{"role": "user", "content": "Hi " * 600}]))

    assert client.status == 400
    assert [line["error"]["code"] for line in client.lines] == ["context_length_exceeded"]


def test_an_error_in_the_middle_of_an_answer_is_its_last_line(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(base: object, request: object) -> Iterator[Piece]:
        yield Text("a")
        raise BlobDamaged

    monkeypatch.setattr(server, "generate", generate)
    client = ask(library, REQUEST)

    assert client.status == 200
    assert client.lines[0] == {"text": "a"}
    assert client.lines[1]["error"]["class"] == "BlobDamaged"


def test_an_unexpected_exception_is_logged_with_its_trace_and_answered_without(
    library: Library, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def generate(base: object, request: object) -> Iterator[Piece]:
        raise RuntimeError("a secret of the machine")

    monkeypatch.setattr(server, "generate", generate)
    client = ask(library, REQUEST)

    assert client.status == 500
    assert "secret" not in str(client.lines)
    assert "Traceback" in caplog.text
    assert "a secret of the machine" in caplog.text


def embed(library: Library, texts: list[str]) -> Client:
    async def run() -> Client:
        client = Client(texts)
        await client.ask(EmbedEndpoint(GenerationThread(library)))
        return client

    return asyncio.run(run())


def test_a_client_that_goes_away_before_its_texts_have_their_turn_is_forgotten(recording: RecordingLibrary) -> None:
    async def run() -> Client:
        thread = GenerationThread(recording)
        client = Client(["the"])
        async with aclosing(thread.generate(ENDLESS)) as running:
            await anext(running)
            client.leave()
            await client.ask(EmbedEndpoint(thread))
        await finish(thread, REQUEST)
        return client

    assert asyncio.run(run()).sent == []
    assert recording.used == ["endless", "micro"]


def test_a_fault_of_the_settings_is_the_answer_to_texts(library: Library) -> None:
    client = embed(library, ["the"])

    assert client.status == 400
    assert client.lines[0]["error"]["code"] == "model_not_available"


def test_what_nobody_foresaw_of_texts_is_logged_with_its_trace_and_answered_without(
    recording: RecordingLibrary, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(library: Library) -> Embedder:
        raise RuntimeError("a secret of the machine")

    monkeypatch.setattr(Library, "embedder", fail)
    client = embed(recording, ["the"])

    assert client.status == 500
    assert "secret" not in str(client.lines)
    assert "Traceback" in caplog.text
    assert "a secret of the machine" in caplog.text
