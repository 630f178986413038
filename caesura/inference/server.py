"""The engine's own process: `python -m caesura.inference.server --socket PATH`, started by `EngineProcess`.

    GET  /healthz   200 once it answers at all
    POST /generate  a request → the pieces of its answers, one a line; an error is a line too, and the last
    POST /embed     inputs → their embeddings, in one line, or an error

It ends when its standard input does, and so never outlives the process that holds the other end.
"""

from __future__ import annotations

import argparse
import logging
import os
import threading
from collections.abc import Coroutine
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
from caesura.inference.engine import ChatRequest, CompletionRequest, EmbedRequest
from caesura.inference.generation import Generation
from caesura.inference.library import Library
from caesura.inference.wire import (
    decode_embed_request,
    decode_request,
    encode_embeddings,
    encode_error,
    encode_piece,
)
from caesura.logging import configure
from caesura.settings import load_settings
from caesura.storage import LocalStorage

logger = logging.getLogger(__name__)

#: Answers still in the making when the process is asked to end are cut off after this.
SHUTDOWN_TIMEOUT_S = 1


class GenerateEndpoint:
    """`POST /generate`, as an ASGI application: only so can it see that a client left before there is an answer."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode_request(await Request(scope, receive).body())
        await _unless_client_leaves(receive, self._answer(request, send))

    async def _answer(self, request: ChatRequest | CompletionRequest, send: Send) -> None:
        """Tell each piece. An error before the first one decides the status; a later one only ends the answer."""
        answer = _Answer(send)
        try:
            async with aclosing(self._generation.generate(request)) as pieces:
                async for piece in pieces:
                    await answer.tell(encode_piece(piece))
        except Exception as error:
            await answer.tell_error(error, f"a request to the base model '{request.base}'")
        await answer.end()


class EmbedEndpoint:
    """`POST /embed`, as an ASGI application, as `GenerateEndpoint` is."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode_embed_request(await Request(scope, receive).body())
        await _unless_client_leaves(receive, self._answer(request, send))

    async def _answer(self, request: EmbedRequest, send: Send) -> None:
        answer = _Answer(send)
        try:
            await answer.tell(encode_embeddings(await self._generation.embed(request)))
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


async def _unless_client_leaves(receive: Receive, work: Coroutine[None, None, None]) -> None:
    async def run(scope: anyio.CancelScope) -> None:
        await work
        scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(run, group.cancel_scope)
        while (await receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()


def healthz(_request: Request) -> Response:
    return PlainTextResponse("ok")


def create_app(library: Library) -> Starlette:
    generation = Generation(library)
    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/generate", GenerateEndpoint(generation), methods=["POST"]),
            Route("/embed", EmbedEndpoint(generation), methods=["POST"]),
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
