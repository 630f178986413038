"""Texts are compared in a process of their own (`python -m caesura.graders.similarity`), started on first use.

What compares them takes a second and some 200 MB to import, which the server shall not pay for at its start; and one
pair of long texts takes seconds, which shall hold up nobody else.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import Any

#: Of one comparison, the start of the process included. What takes longer is broken off.
TIMEOUT_S = 60.0


class ComparisonFailed(Exception):
    """The texts were not compared; the message says why, and users may read it."""


class Comparer:
    """Compares one pair at a time. Used from one event loop."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()
        self._process: Process | None = None
        self._is_closed = False

    async def compare(self, metric: str, text: str, reference: str) -> float:
        """How alike the texts are, from 0 to 1. Raises ComparisonFailed."""
        request = json.dumps([metric, text, reference]).encode() + b"\n"
        async with self._turn:
            try:
                async with asyncio.timeout(self._timeout_s):
                    reply = await self._ask(request)
            except TimeoutError:
                await self._end()
                raise ComparisonFailed(
                    f"{metric} took longer than {self._timeout_s:.0f} s. Shorten the texts."
                ) from None
            except BaseException:
                await self._end()  # the next one must not read this one's reply
                raise
        if "fault" in reply:
            raise ComparisonFailed(reply["fault"])
        return reply["score"]

    async def close(self) -> None:
        """End the process. May be called twice; a comparison under way fails."""
        self._is_closed = True
        await self._end()

    async def _ask(self, request: bytes) -> dict[str, Any]:
        process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            await process.stdin.drain()
            line = await process.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            line = b""
        if not line:
            raise ComparisonFailed("The process that compares texts ended. Please try again; the log may say why.")
        return json.loads(line)

    async def _running(self) -> Process:
        if self._is_closed:
            raise ComparisonFailed("The server is shutting down.")
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "caesura.graders.similarity"),
                stdin=PIPE,  # held open as long as this process lives; the child ends at its end
                stdout=PIPE,
                start_new_session=True,  # Ctrl-C is for this process
            )
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
