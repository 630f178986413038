from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from caesura.errors import BlobDamaged, CaesuraError, InvalidRequest
from caesura.inference.embedding import prepare_embeddings
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
from caesura.inference.server import EngineServer
from caesura.inference.wire import decode_embeddings, decode_piece, encode_request
from tests.inference.making import make

REQUEST = ChatRequest("micro", None, [{"role": "user", "content": "Hi"}], temperature=0, max_tokens=5)
COMPLETION = CompletionRequest("micro", None, [5, 6], temperature=0, max_tokens=3, echo=True, top_logprobs=1)
ENDLESS = replace(REQUEST, base="endless", max_tokens=None)
EMBED = EmbedRequest(["the"], "micro")
#: In the place of a piece: it never comes.
NEVER = "never"


@dataclass
class Scripted:
    """In the place of a Generation: tells what it was given; an exception among it is raised."""

    pieces: list[Any]
    requests: list[Any] = field(default_factory=list[Any])
    is_asked: asyncio.Event = field(default_factory=asyncio.Event)
    is_left: asyncio.Event = field(default_factory=asyncio.Event)

    async def generate(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[Piece, None]:
        self._note(request)
        try:
            for piece in self.pieces:
                yield await self._told(piece)
        except (asyncio.CancelledError, GeneratorExit):
            self.is_left.set()
            raise

    async def embed(self, request: EmbedRequest) -> Embeddings:
        self._note(request)
        try:
            return await self._told(*self.pieces)
        except asyncio.CancelledError:
            self.is_left.set()
            raise

    def _note(self, request: Any) -> None:
        self.requests.append(request)
        self.is_asked.set()

    async def _told(self, piece: Any) -> Any:
        if isinstance(piece, Exception):
            raise piece
        if piece == NEVER:
            await asyncio.Event().wait()
        return piece


Connect = partial[Any]


@asynccontextmanager
async def serving(generation: Any) -> AsyncIterator[Connect]:
    """Yields what opens a connection to a server that asks this generation."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        serving = asyncio.create_task(EngineServer(generation).serve(path))
        while not path.exists():
            assert not serving.done()
            await asyncio.sleep(0)
        yield partial(asyncio.open_unix_connection, path)
        serving.cancel()
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
        await asyncio.sleep(0)  # transports close a turn later


async def send(connect: Connect, request: Any) -> tuple[StreamReader, StreamWriter]:
    reader, writer = await connect()
    writer.write(encode_request(request))
    return reader, writer


async def read_all(connect: Connect, request: Any) -> list[bytes]:
    """The lines of the answer, at whose end the server closes the connection."""
    reader, writer = await send(connect, request)
    lines = (await reader.read()).splitlines(keepends=True)
    writer.close()
    return lines


def ask(request: Any, *pieces: Any) -> list[bytes]:
    """The lines of an answer that is made of these pieces."""

    async def run() -> list[bytes]:
        generation = Scripted(list(pieces))
        async with serving(generation) as connect:
            lines = await read_all(connect, request)
        assert generation.requests == [request]
        assert not generation.is_left.is_set()
        return lines

    return asyncio.run(run())


def error_in(line: bytes) -> dict[str, Any]:
    return json.loads(line)["error"]


@pytest.mark.parametrize("request_", [REQUEST, COMPLETION])
def test_an_answer_is_its_pieces_line_by_line(request_: Any) -> None:
    pieces = [Text("a\u2028"), ToolCall(0, "f"), ToolArguments(0, "{"), Text("b", 1), Finished("stop", 1, 4)]

    assert [decode_piece(line) for line in ask(request_, *pieces)] == pieces


def test_embeddings_are_one_line() -> None:
    embeddings = Embeddings([[0.1, -1e-30], [1.0, 0.0]], 7)

    assert [decode_embeddings(line) for line in ask(EMBED, embeddings)] == [embeddings]


@pytest.mark.parametrize("request_", [REQUEST, EMBED])
def test_an_error_is_a_line_with_all_that_it_says(request_: Any) -> None:
    (line,) = ask(request_, InvalidRequest("Too long.", param="messages", code="context_length_exceeded"))

    assert error_in(line) == {
        "class": "InvalidRequest",
        "message": "Too long.",
        "param": "messages",
        "code": "context_length_exceeded",
    }


def test_an_error_in_the_middle_of_an_answer_is_its_last_line() -> None:
    first, last = ask(REQUEST, Text("a"), BlobDamaged("The stored file is damaged."), Text("b"))

    assert decode_piece(first) == Text("a")
    assert error_in(last)["class"] == "BlobDamaged"


@pytest.mark.parametrize("request_", [REQUEST, EMBED])
def test_an_unexpected_exception_is_logged_with_its_trace_and_answered_without(
    request_: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (line,) = ask(request_, RuntimeError("a secret of the machine"))

    assert error_in(line) == {"class": "CaesuraError", "message": CaesuraError().message, "param": None, "code": None}
    assert "Traceback" in caplog.text
    assert "a secret of the machine" in caplog.text


@pytest.mark.parametrize(("request_", "pieces"), [(REQUEST, [NEVER]), (REQUEST, [Text("a"), NEVER]), (EMBED, [NEVER])])
def test_a_client_that_goes_away_leaves_the_generation(request_: Any, pieces: list[Any]) -> None:
    async def run() -> None:
        generation = Scripted(pieces)
        async with serving(generation) as connect:
            reader, writer = await send(connect, request_)
            await generation.is_asked.wait()
            for _ in pieces[1:]:
                await reader.readline()
            writer.close()
            await generation.is_left.wait()

    asyncio.run(run())


def test_a_client_that_does_not_read_and_goes_away_leaves_the_generation() -> None:
    async def run() -> None:
        generation = Scripted([Text("a" * 10**6)] * 100)
        async with serving(generation) as connect:
            reader, writer = await send(connect, REQUEST)
            await reader.readexactly(1)
            assert not generation.is_left.is_set()
            writer.transport.abort()
            await generation.is_left.wait()

    asyncio.run(run())


def test_who_asks_nothing_or_only_half_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        generation = Scripted([Finished("stop", 1, 1)])
        async with serving(generation) as connect:
            for half in (b"", encode_request(REQUEST)[:50]):
                reader, writer = await connect()
                writer.write(half)
                writer.write_eof()
                assert await reader.read() == b""
                writer.close()
            assert generation.requests == []
            assert len(await read_all(connect, REQUEST)) == 1

    asyncio.run(run())
    assert caplog.text == ""


def test_many_connections_at_once_are_taken_while_the_loop_is_busy() -> None:
    async def run() -> list[bytes]:
        async with serving(Scripted([Finished("stop", 1, 1)])) as connect:
            clients = [socket.socket(socket.AF_UNIX) for _ in range(300)]
            for client in clients:  # the loop does not turn in between
                client.setblocking(False)
                client.connect(str(connect.args[0]))
                client.send(encode_request(REQUEST))
            loop = asyncio.get_running_loop()
            answers = await asyncio.gather(*(loop.sock_recv(client, 1) for client in clients))
            for client in clients:
                client.close()
            return answers

    assert all(asyncio.run(run()))


def test_a_long_request_arrives_whole() -> None:
    request = replace(REQUEST, messages=[{"role": "user", "content": "é" * 10**6}])

    (line,) = ask(request, Finished("stop", 1, 1))

    assert decode_piece(line) == Finished("stop", 1, 1)


def test_a_client_that_goes_away_in_the_middle_of_an_answer_frees_its_place(library: Library) -> None:
    async def run() -> None:
        generation = Generation(library)
        async with serving(generation) as connect:
            reader, writer = await send(connect, ENDLESS)
            await reader.readline()
            writer.close()
            computing = generation._computing
            while computing._listeners:
                await read_all(connect, REQUEST)
            assert not any(batch.members for batch in computing._batches.values())

    asyncio.run(run())


def test_a_client_that_does_not_read_holds_up_nobody(library: Library) -> None:
    async def run() -> list[bytes]:
        async with serving(Generation(library)) as connect:
            reader, writer = await send(connect, replace(ENDLESS, n=8))
            await reader.readline()
            lines = await read_all(connect, REQUEST)
            writer.transport.abort()
        return lines

    assert [decode_piece(line) for line in asyncio.run(run())] == make(library, REQUEST)


def split_logprobs(pieces: Sequence[Piece]) -> tuple[list[Piece], list[float]]:
    """The pieces without their tokens' log-probabilities, and these by themselves."""
    tokens = [one for piece in pieces if isinstance(piece, Text) for one in piece.logprobs or ()]
    bare = [
        replace(piece, logprobs=tuple(replace(one, logprob=None, top=()) for one in piece.logprobs or ()))
        if isinstance(piece, Text)
        else piece
        for piece in pieces
    ]
    return bare, [one.logprob for one in tokens if one.logprob is not None]


def test_requests_of_every_kind_are_answered_at_the_same_time(library: Library) -> None:
    async def run() -> list[list[bytes]]:
        async with serving(Generation(library)) as connect:
            return await asyncio.gather(*(read_all(connect, request) for request in (REQUEST, COMPLETION, EMBED)))

    chat, completion, embeddings = asyncio.run(run())
    assert [decode_piece(line) for line in chat] == make(library, REQUEST)
    # Beside others a completion is made by other sums: its log-probabilities' last bits may be others.
    pieces, logprobs = split_logprobs([decode_piece(line) for line in completion])
    alone, logprobs_alone = split_logprobs(make(library, COMPLETION))
    assert pieces == alone
    assert len(logprobs) == 4
    assert logprobs == pytest.approx(logprobs_alone, abs=1e-4)
    assert [decode_embeddings(line) for line in embeddings] == [prepare_embeddings(library, EMBED)()]
