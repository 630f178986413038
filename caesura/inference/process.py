"""The engine as a child process: started on first use, started anew once it died, gone when this process is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from caesura.errors import EngineUnavailable
from caesura.inference.engine import ChatRequest, CompletionRequest, Embeddings, EmbedRequest, Finished, Piece
from caesura.inference.wire import decode_embeddings, decode_piece, encode_embed_request, encode_request
from caesura.settings import Settings

logger = logging.getLogger(__name__)

#: Importing torch and transformers takes seconds; on a busy machine with a cold disk, many.
START_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.05
#: A child that was asked to end may take this long; then it is killed.
STOP_TIMEOUT_S = 5.0
#: A dying process drops its connections a moment before its end can be seen.
DEATH_TIMEOUT_S = 1.0
#: A Unix socket's path has at most some 100 bytes; a longer temporary folder is not used.
MAX_FOLDER_BYTES = 70


@dataclass(frozen=True, slots=True)
class _Child:
    process: Process
    client: httpx.AsyncClient
    #: Closing it ends the process, then removes what served it.
    resources: AsyncExitStack


class EngineProcess:
    """An `Engine`: `python -m caesura.inference.server`, spoken to over a Unix socket."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        #: The start of the newest child, under way or over.
        self._start: asyncio.Task[_Child] | None = None
        self._is_closed = False

    async def generate(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[Piece, None]:
        child = await self._running()
        num_unfinished = request.n
        async with (
            _death_is_unavailable(child),
            child.client.stream("POST", "/generate", content=encode_request(request)) as response,
        ):
            async for line in response.aiter_lines():
                piece = decode_piece(line)
                num_unfinished -= isinstance(piece, Finished)
                yield piece
                if not num_unfinished:
                    return
        raise EngineUnavailable("The inference engine broke off its answer. Please try again.")

    async def embed(self, request: EmbedRequest) -> Embeddings:
        child = await self._running()
        async with _death_is_unavailable(child):
            response = await child.client.post("/embed", content=encode_embed_request(request))
        return decode_embeddings(response.text)

    async def close(self) -> None:
        self._is_closed = True
        if self._start is not None:
            with suppress(EngineUnavailable):
                child = await self._start
                await child.resources.aclose()

    async def _running(self) -> _Child:
        """The child. However many ask for it at once, one is started; those who ask may leave before it is ready."""
        if self._is_closed:
            raise EngineUnavailable("The server is shutting down.")
        if self._start is None or _is_spent(self._start):
            self._start = asyncio.create_task(self._start_after(self._start))
        return await asyncio.shield(self._start)

    async def _start_after(self, previous: asyncio.Task[_Child] | None) -> _Child:
        if previous is not None and previous.exception() is None:
            child = previous.result()
            logger.error("the inference engine ended with status %s and is started again", child.process.returncode)
            await child.resources.aclose()
        async with AsyncExitStack() as resources:
            folder = resources.enter_context(_socket_folder())
            socket = Path(folder) / "engine.sock"
            client = await resources.enter_async_context(_client(socket))
            process = await self._spawn(socket)
            resources.push_async_callback(_end, process)
            await self._until_ready(process, client)
            return _Child(process, client, resources.pop_all())

    async def _spawn(self, socket: Path) -> Process:
        # Passive: threads that wait for work leave the cores to those that train.
        environment = os.environ | self._settings.to_environment() | {"OMP_WAIT_POLICY": "PASSIVE"}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "caesura.inference.server", "--socket", str(socket)),
            stdin=PIPE,  # held open as long as this process lives; the child ends at its end
            stdout=2,  # what a library prints belongs into the log
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which ends the child when its answers are done
        )

    async def _until_ready(self, process: Process, client: httpx.AsyncClient) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while process.returncode is None and not self._is_closed:
                    with suppress(httpx.TransportError):
                        await client.get("/healthz")
                        return
                    await asyncio.sleep(POLL_INTERVAL_S)
        except TimeoutError as error:
            raise EngineUnavailable(f"The inference engine did not start within {START_TIMEOUT_S:.0f} s.") from error
        if self._is_closed:
            raise EngineUnavailable("The server is shutting down.")
        raise EngineUnavailable("The inference engine ended while it started. The server's log says why.")


@asynccontextmanager
async def _death_is_unavailable(child: _Child) -> AsyncGenerator[None, None]:
    """The child's connections break when it dies."""
    try:
        yield
    except httpx.TransportError as error:
        with suppress(TimeoutError):
            await asyncio.wait_for(child.process.wait(), DEATH_TIMEOUT_S)
        raise EngineUnavailable("The inference engine stopped unexpectedly. Please try again.") from error


def _is_spent(start: asyncio.Task[_Child]) -> bool:
    """Whether it failed, or its child has ended."""
    return start.done() and (start.exception() is not None or start.result().process.returncode is not None)


def _socket_folder() -> tempfile.TemporaryDirectory[str]:
    """A new folder that only this user can enter."""
    fits = len(os.fsencode(tempfile.gettempdir())) <= MAX_FOLDER_BYTES
    return tempfile.TemporaryDirectory(prefix="caesura-", dir=None if fits else "/tmp", ignore_cleanup_errors=True)


def _client(socket: Path) -> httpx.AsyncClient:
    """Waits for an answer as long as it takes. A connection serves one request: a new one on a socket costs nothing,
    and one kept alive may be closed by the child just when it is used again."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(socket), limits=limits),
        base_url="http://engine",
        timeout=httpx.Timeout(None, connect=5.0),
    )


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
