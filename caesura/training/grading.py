"""Grades beside the training: a thread with an event loop of its own, in which graders and tools run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, TypeVar

from caesura.graders.grade import Grade, Grader, Observation, grade

T = TypeVar("T")

MAX_CONCURRENT_GRADES = 32
#: Between two tries to reach a judge, seconds; doubled up to the second number.
RETRY_S = (1.0, 30.0)


class Grading:
    """A context. `open_grader` is entered in the thread's loop, and left there at the end.

    `on_waiting` is called, in that thread, when a model that a grader asks cannot be reached: once until it can.
    """

    def __init__(
        self,
        open_grader: Callable[[], AbstractAsyncContextManager[Grader]],
        on_waiting: Callable[[str], None],
    ) -> None:
        self._open_grader = open_grader
        self._on_waiting = on_waiting
        self._is_waiting = False
        self._loop = asyncio.new_event_loop()
        self._turns = asyncio.Semaphore(MAX_CONCURRENT_GRADES)
        self._ended = asyncio.Event()
        self._grader: Future[Grader] = Future()
        self._futures: set[Future[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="grading", daemon=True)

    def __enter__(self) -> Self:
        """Raises what `open_grader` raises."""
        self._thread.start()
        try:
            self._grader.result()
        except BaseException:
            self._thread.join()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def submit(self, observation: Observation) -> Future[Grade]:
        """The observation's grade, in its turn: at most `MAX_CONCURRENT_GRADES` are given at a time."""
        return self.run(self._grade(observation))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run it in the thread's loop."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def cancel(self) -> None:
        """Break off all that runs or waits; its futures are cancelled."""
        for future in list(self._futures):
            future.cancel()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        try:
            async with self._open_grader() as grader:
                self._grader.set_result(grader)
                await self._ended.wait()
        except BaseException as error:
            if self._grader.done():
                raise
            self._grader.set_exception(error)

    async def _grade(self, observation: Observation) -> Grade:
        async with self._turns:
            pause_s, longest_s = RETRY_S
            while True:
                given = await grade(self._grader.result(), observation)
                if not given.score.is_unreachable:
                    self._is_waiting = False
                    return given
                if not self._is_waiting:
                    self._is_waiting = True
                    self._on_waiting(" ".join(dict.fromkeys(given.score.faults.values())))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, longest_s)
