"""The engine's own process: `python -m caesura.inference.server --socket PATH`, started by `EngineProcess`.

On a connection comes one request, in a line; the answer is a line a piece, or one for all embeddings. An error is
a line too, and the last. Whoever closes the connection leaves. It is no HTTP: that costs more than making the tokens of
a small model.

The process ends when its standard input does, and so never outlives the process that holds the other end.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path

import torch

from caesura.errors import CaesuraError
from caesura.inference.cores import FreeCores
from caesura.inference.engine import EmbedRequest
from caesura.inference.generation import Generation
from caesura.inference.library import Library
from caesura.inference.wire import MAX_LINE_BYTES, decode_request, encode_embeddings, encode_error, encode_piece
from caesura.logging import configure
from caesura.settings import load_settings
from caesura.storage import LocalStorage

logger = logging.getLogger(__name__)

#: Connections that may come at once, before the loop has turned to any: one more would be refused. How many answers
#: there may be is the API's to say (`max_answers`).
MAX_WAITING = 4096


class EngineServer:
    """Answers each connection by `generation`."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def serve(self, socket: Path) -> None:
        """Listen on the socket, for ever."""
        server = await asyncio.start_unix_server(self.answer, socket, limit=MAX_LINE_BYTES, backlog=MAX_WAITING)
        await server.serve_forever()

    async def answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection, until its answer is told or the client leaves."""
        telling = asyncio.create_task(self._tell(await reader.readline(), writer))
        leaving = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait((telling, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            has_left = leaving.done()
            telling.cancel()
            leaving.cancel()
            await asyncio.wait((telling, leaving))
            if has_left:
                writer.transport.abort()  # nobody reads what is not sent yet
            else:
                writer.close()

    async def _tell(self, line: bytes, writer: StreamWriter) -> None:
        with suppress(ConnectionError):  # the client is gone
            if line.endswith(b"\n"):  # else it only looked whether there is anyone, or left before it had asked
                async with aclosing(self._lines(line)) as answers:
                    async for answer in answers:
                        writer.write(answer)
                        await writer.drain()

    async def _lines(self, line: bytes) -> AsyncGenerator[bytes, None]:
        try:
            request = decode_request(line)
            if isinstance(request, EmbedRequest):
                yield encode_embeddings(await self._generation.embed(request))
            else:
                async with aclosing(self._generation.generate(request)) as pieces:
                    async for piece in pieces:
                        yield encode_piece(piece)
        except CaesuraError as error:
            yield encode_error(error)
        except Exception:  # nobody foresaw it: the log has its trace, and only that it failed is told
            logger.exception("a request failed")
            yield encode_error(CaesuraError())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m caesura.inference.server")
    parser.add_argument("--socket", type=Path, required=True, help="Path of the Unix socket to answer on.")
    socket: Path = parser.parse_args().socket
    threading.Thread(target=_exit_at_end_of_input, args=(socket,), daemon=True).start()
    settings = load_settings(None, {})
    configure(settings.log_level, "engine")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    library = Library(settings, LocalStorage(settings.data_dir / "blobs"))
    generation = Generation(library, FreeCores().count if settings.threads is None else None)
    asyncio.run(EngineServer(generation).serve(socket))


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
