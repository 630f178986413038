"""The engine as a child process: started on first use, started anew once it died, gone when this process is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from pathlib import Path

from caesura.errors import EngineUnavailable
from caesura.inference.engine import ChatRequest, CompletionRequest, Embeddings, EmbedRequest, Finished, Piece
from caesura.inference.wire import MAX_LINE_BYTES, decode_embeddings, decode_piece, encode_request
from caesura.settings import Settings

logger = logging.getLogger(__name__)

#: Importing torch and transformers takes seconds; on a busy machine with a cold disk, many.
START_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.05
#: A child that was asked to end may take this long; then it is killed.
STOP_TIMEOUT_S = 5.0
#: So long after a connection broke the process is gone, if that was why.
DEATH_TIMEOUT_S = 1.0
#: A step's operations follow each other within microseconds, and to wake a thread takes longer than most of them: so
#: it waits awake, for so many turns of a loop. Where cores are shared there is one thread, which waits for none.
#: Large pages spare the processor looking up addresses, as it reads all weights at every step.
ENGINE_ENVIRONMENT = {"GOMP_SPINCOUNT": "5000", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
#: A Unix socket's path has at most some 100 bytes; a longer temporary folder is not used.
MAX_FOLDER_BYTES = 70


@dataclass(frozen=True, slots=True)
class _Child:
    process: Process
    socket: Path
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
        num_unfinished = request.n
        async with aclosing(self._ask(request)) as lines:
            async for line in lines:
                piece = decode_piece(line)
                num_unfinished -= isinstance(piece, Finished)
                yield piece
                if not num_unfinished:
                    return

    async def embed(self, request: EmbedRequest) -> Embeddings:
        async with aclosing(self._ask(request)) as lines:
            return decode_embeddings(await anext(lines))

    async def close(self) -> None:
        self._is_closed = True
        if self._start is not None:
            with suppress(EngineUnavailable):
                child = await self._start
                await child.resources.aclose()

    async def _ask(self, request: ChatRequest | CompletionRequest | EmbedRequest) -> AsyncGenerator[bytes, None]:
        """The lines of the answer, as they come. It never ends by itself: raises EngineUnavailable after the last."""
        child = await self._running()
        try:
            reader, writer = await asyncio.open_unix_connection(child.socket, limit=MAX_LINE_BYTES)
        except OSError as error:
            raise await _unavailable(child) from error
        try:
            writer.write(encode_request(request))
            await writer.drain()
            while (line := await reader.readline()).endswith(b"\n"):
                yield line
            raise await _unavailable(child)
        except ConnectionError as error:
            raise await _unavailable(child) from error
        finally:
            writer.close()

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
            process = await self._spawn(socket)
            resources.push_async_callback(_end, process)
            await self._until_ready(process, socket)
            return _Child(process, socket, resources.pop_all())

    async def _spawn(self, socket: Path) -> Process:
        environment = os.environ | self._settings.to_environment() | ENGINE_ENVIRONMENT
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "caesura.inference.server", "--socket", str(socket)),
            stdin=PIPE,  # held open as long as this process lives; the child ends at its end
            stdout=2,  # what a library prints belongs into the log
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which ends the child when its answers are done
        )

    async def _until_ready(self, process: Process, socket: Path) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while process.returncode is None and not self._is_closed:
                    with suppress(OSError):
                        _, writer = await asyncio.open_unix_connection(socket)
                        writer.close()
                        return
                    await asyncio.sleep(POLL_INTERVAL_S)
        except TimeoutError as error:
            raise EngineUnavailable(f"The inference engine did not start within {START_TIMEOUT_S:.0f} s.") from error
        if self._is_closed:
            raise EngineUnavailable("The server is shutting down.")
        raise EngineUnavailable("The inference engine ended while it started. The server's log says why.")


async def _unavailable(child: _Child) -> EngineUnavailable:
    """What the end of a connection means: a dying process drops its connections a moment before it is gone."""
    try:
        await asyncio.wait_for(child.process.wait(), DEATH_TIMEOUT_S)
    except TimeoutError:
        return EngineUnavailable("The inference engine broke off its answer. Please try again.")
    return EngineUnavailable("The inference engine stopped unexpectedly. Please try again.")


def _is_spent(start: asyncio.Task[_Child]) -> bool:
    """Whether it failed, or its child has ended."""
    return start.done() and (start.exception() is not None or start.result().process.returncode is not None)


def _socket_folder() -> tempfile.TemporaryDirectory[str]:
    """A new folder that only this user can enter."""
    fits = len(os.fsencode(tempfile.gettempdir())) <= MAX_FOLDER_BYTES
    return tempfile.TemporaryDirectory(prefix="caesura-", dir=None if fits else "/tmp", ignore_cleanup_errors=True)


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
