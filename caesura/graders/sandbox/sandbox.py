"""`Sandbox`: runs graders of people who may be hostile, each call in a fresh process that can only compute."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any

from caesura.graders.sandbox.imports import modules_to_preload
from caesura.graders.sandbox.interpreter import private_paths
from caesura.graders.sandbox.limits import MAX_SOURCE_BYTES, Level, Limits, RuntimeFault, SandboxFault
from caesura.graders.sandbox.reply import number_of
from caesura.graders.sandbox.zygote import Call, Zygote, start_zygote

#: Zygotes with different modules imported that are kept at a time; the one not used for longest makes room.
_MAX_ZYGOTES = 6


class Sandbox:
    """One job's graders. Calls share no state, and no process with another sandbox.

    It belongs to one event loop, and to a thread that lives as long as it: the kernel ends the zygotes with that.
    """

    def __init__(self, level: Level, limits: Limits = Limits(), num_workers: int | None = None) -> None:  # noqa: B008
        """`num_workers`: calls at a time; as many as the cores that this process may use, unless given."""
        self._level = level
        self._limits = limits
        self._num_workers = num_workers or len(os.sched_getaffinity(0))
        self._permits = asyncio.Semaphore(self._num_workers)
        #: By what they have imported, the one used last at the end.
        self._starts: dict[frozenset[str], asyncio.Task[Zygote]] = {}
        #: All whose process is not gone, those that take no calls any more too.
        self._zygotes: set[Zygote] = set()
        self._is_closed = False

    async def run(self, source: str, sample: Mapping[str, Any], item: Mapping[str, Any]) -> float:
        """What `grade(sample, item)` of `source` returns.

        RuntimeFault: the grader failed. SandboxFault: it was stopped, or could not be run. A call that is cancelled
        while it runs is killed, and takes up its place until it is gone.
        """
        _check_size(source)
        request = _encode(source, sample, item)
        await self._permits.acquire()
        try:
            zygote, call = await self._begin(modules_to_preload(source), request)
        except BaseException:
            self._permits.release()
            raise
        call.ended.add_done_callback(lambda _: self._permits.release())
        try:
            ending = await asyncio.shield(call.ended)
        except asyncio.CancelledError:
            zygote.abandon(call)
            raise
        if ending is None:
            kind = "sandbox is closed" if self._is_closed else "timeout" if call.is_overdue else "sandbox died"
            raise SandboxFault(kind)
        return number_of(ending, private_paths())

    async def close(self) -> None:
        """Ends everything, calls under way too. May be called twice; `run` is then a SandboxFault."""
        self._is_closed = True
        starts = list(self._starts.values())
        for start in starts:
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)
        for zygote in list(self._zygotes):
            zygote.kill()
        await asyncio.gather(*(zygote.gone for zygote in list(self._zygotes)))

    async def _begin(self, modules: frozenset[str], request: bytes) -> tuple[Zygote, Call]:
        for _ in range(2):  # one that died while it was idle shows it only now
            zygote = await self._zygote(modules)
            try:
                call = zygote.begin(request)
            except OSError as error:
                raise SandboxFault("sandbox has no free file descriptors") from error
            if call is not None:
                return zygote, call
        raise SandboxFault("sandbox died")

    async def _zygote(self, modules: frozenset[str]) -> Zygote:
        """One that has imported `modules` and has a slot; however many ask at once, one is started."""
        if self._is_closed:
            raise SandboxFault("sandbox is closed")
        start = self._starts.pop(modules, None)
        if start is None or _is_spent(start):
            start = asyncio.create_task(self._start(modules))
            start.add_done_callback(_note)
        self._starts[modules] = start
        if len(self._starts) > _MAX_ZYGOTES:
            self._starts.pop(next(iter(self._starts))).add_done_callback(_retire)
        try:
            return await asyncio.shield(start)
        except asyncio.CancelledError:
            if start.cancelled():
                raise SandboxFault("sandbox is closed") from None
            raise

    async def _start(self, modules: frozenset[str]) -> Zygote:
        zygote = await start_zygote(self._level, self._limits, self._num_workers, modules)
        self._zygotes.add(zygote)
        zygote.gone.add_done_callback(lambda _: self._zygotes.discard(zygote))
        return zygote


def _check_size(source: str) -> None:
    size = len(source.encode(errors="surrogatepass"))
    if size > MAX_SOURCE_BYTES:
        raise RuntimeFault(f"The source has {size} bytes; at most {MAX_SOURCE_BYTES} are allowed. Shorten it.")


def _encode(source: str, sample: Mapping[str, Any], item: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps({"source": source, "sample": dict(sample), "item": dict(item)}).encode()
    except RecursionError:
        raise SandboxFault("sample or item nested too deeply") from None


def _is_spent(start: asyncio.Task[Zygote]) -> bool:
    """Whether it failed, or its zygote takes no calls any more."""
    return start.done() and (start.cancelled() or start.exception() is not None or start.result().is_spent)


def _note(start: asyncio.Task[Zygote]) -> None:
    # Marks a failure as seen: all who waited for it may have been cancelled.
    if not start.cancelled():
        start.exception()


def _retire(start: asyncio.Task[Zygote]) -> None:
    if not start.cancelled() and start.exception() is None:
        start.result().retire()
