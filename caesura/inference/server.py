"""The engine's own process: `python -m caesura.inference.server --socket PATH`, started by `EngineProcess`.

    GET  /healthz   200 once it answers at all
    POST /chat      a ChatRequest → the pieces of its answer, one a line; an error is a line too, and the last
    POST /embed     texts → their embeddings, in one line, or an error

It ends when its standard input does, and so never outlives the process that holds the other end.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path

import anyio
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from caesura.errors import CaesuraError
from caesura.inference.engine import ChatRequest, Finished, Piece, Text
from caesura.inference.library import Library
from caesura.inference.sampler import generate
from caesura.inference.wire import decode_request, decode_texts, encode_embeddings, encode_error, encode_piece
from caesura.logging import configure
from caesura.settings import load_settings
from caesura.storage import LocalStorage

logger = logging.getLogger(__name__)

#: Answers still in the making when the process is asked to end are cut off after this.
SHUTDOWN_TIMEOUT_S = 1


class GenerationThread:
    """The one thread that computes. Requests get it in the order in which they came, each until its answer is done."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generation")

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Piece, None]:
        """The answer to `request`. Closing the generator early frees the thread at the next token."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        has_left = threading.Event()

        def work() -> None:
            for piece in self._pieces(request):
                if has_left.is_set():
                    return
                if piece != Text(""):
                    loop.call_soon_threadsafe(pieces.put_nowait, piece)

        turn = self._thread.submit(work)
        try:
            while True:
                piece = await pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if isinstance(piece, Finished):
                    return
        finally:
            has_left.set()
            turn.cancel()  # it may not have come yet

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """The embeddings. Cancelling it before its turn leaves the thread to the others."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: self._library.embedder().embed(texts))

    def _pieces(self, request: ChatRequest) -> Iterator[Piece | Exception]:
        """The answer; an exception ends it as its last piece."""
        try:
            base = self._library.use(request.base, request.adapter)
            yield from generate(base, request)
        except Exception as error:
            yield error


class ChatEndpoint:
    """`POST /chat`, as an ASGI application: only so can it see that the client went away before there is an answer."""

    def __init__(self, thread: GenerationThread) -> None:
        self._thread = thread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode_request(await Request(scope, receive).body())
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_at_disconnect, receive, group.cancel_scope)
            await self._answer(request, send)
            group.cancel_scope.cancel()

    async def _answer(self, request: ChatRequest, send: Send) -> None:
        """Tell each piece. An error before the first one decides the status; a later one only ends the answer."""
        answer = _Answer(send)
        try:
            async with aclosing(self._thread.chat(request)) as pieces:
                async for piece in pieces:
                    await answer.tell(encode_piece(piece))
        except Exception as error:
            await answer.tell_error(error, f"a chat with the base model '{request.base}'")
        await answer.end()


class EmbedEndpoint:
    """`POST /embed`, as an ASGI application, as `ChatEndpoint` is."""

    def __init__(self, thread: GenerationThread) -> None:
        self._thread = thread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        texts = decode_texts(await Request(scope, receive).body())
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_at_disconnect, receive, group.cancel_scope)
            await self._answer(texts, send)
            group.cancel_scope.cancel()

    async def _answer(self, texts: list[str], send: Send) -> None:
        answer = _Answer(send)
        try:
            await answer.tell(encode_embeddings(await self._thread.embed(texts)))
        except Exception as error:
            await answer.tell_error(error, "an embedding")
        await answer.end()


class _Answer:
    """An HTTP answer in lines; the first one sends the head."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._has_begun = False

    async def tell(self, line: bytes, status: int = 200) -> None:
        if not self._has_begun:
            headers = [(b"content-type", b"application/x-ndjson")]
            await self._send({"type": "http.response.start", "status": status, "headers": headers})
            self._has_begun = True
        await self._send({"type": "http.response.body", "body": line, "more_body": True})

    async def tell_error(self, error: Exception, work: str) -> None:
        """What nobody foresaw is logged, with its trace; only that it failed is told."""
        if not isinstance(error, CaesuraError):
            logger.error("%s failed", work, exc_info=error)
            error = CaesuraError()
        await self.tell(encode_error(error), error.status)

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})


async def _cancel_at_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def healthz(_request: Request) -> Response:
    return PlainTextResponse("ok")


def create_app(library: Library) -> Starlette:
    thread = GenerationThread(library)
    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/chat", ChatEndpoint(thread), methods=["POST"]),
            Route("/embed", EmbedEndpoint(thread), methods=["POST"]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m caesura.inference.server")
    parser.add_argument("--socket", type=Path, required=True, help="Path of the Unix socket to answer on.")
    socket: Path = parser.parse_args().socket
    threading.Thread(target=_exit_at_end_of_input, args=(socket,), daemon=True).start()
    settings = load_settings(None, {})
    configure(settings.log_level, "engine")
    if settings.threads is not None:  # else torch takes the cores that this process may use
        torch.set_num_threads(settings.threads)
    app = create_app(Library(settings, LocalStorage(settings.data_dir / "blobs")))
    uvicorn.run(
        app,
        uds=str(socket),
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
    )


def _exit_at_end_of_input(socket: Path) -> None:
    """Whoever started this process is gone: end at once, and leave nothing behind. Nothing here needs saving."""
    while os.read(0, 1024):
        pass
    with suppress(OSError):
        socket.unlink(missing_ok=True)
        socket.parent.rmdir()
    os._exit(0)


if __name__ == "__main__":
    main()
