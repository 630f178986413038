"""All answers in the making, and the two threads that make them: one prepares requests, one computes.

A request that is prepared waits for a place in its base model's batch, and joins at the next step. The batches of
several base models take turns, step by step; embeddings come between two steps.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch

from caesura.inference.answer import Answer
from caesura.inference.batch import Batch
from caesura.inference.embedding import prepare_embeddings
from caesura.inference.engine import ChatRequest, CompletionRequest, Embeddings, EmbedRequest, Finished, Piece
from caesura.inference.library import Library
from caesura.inference.prepare import prepare
from caesura.models.decoding import Decoder

Task = Callable[[], None]


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """Who waits for what the computing thread makes of one request: pieces, or the error that ends it."""

    loop: asyncio.AbstractEventLoop
    told: asyncio.Queue[Any]


class Generation:
    """Answers one event loop, in which it is made, until the process ends."""

    def __init__(self, library: Library, num_threads: Callable[[], int] | None = None) -> None:
        """`num_threads` says, before each step, by how many threads to compute; None leaves torch as it is."""
        self._library = library
        self._preparing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="preparing")
        self._tasks: SimpleQueue[Task] = SimpleQueue()
        self._computing = _Computing(self._tasks, num_threads)
        threading.Thread(target=self._computing.run, name="computing", daemon=True).start()

    async def generate(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[Piece, None]:
        """The answers to `request`. Closing the generator early frees their places at the next step."""
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(self._preparing, prepare, self._library, request)
        listener = Listener(loop, asyncio.Queue())
        listener.told.put_nowait([piece for answer in answers for piece in answer.begin()])
        num_unfinished = len(answers)
        unfinished = [answer for answer in answers if not answer.is_finished]
        self._tasks.put(lambda: self._computing.take(unfinished, listener))
        try:
            while num_unfinished:
                pieces: Sequence[Piece] | Exception = await listener.told.get()
                if isinstance(pieces, Exception):
                    raise pieces
                for piece in pieces:
                    num_unfinished -= isinstance(piece, Finished)
                    yield piece
        finally:
            if num_unfinished:
                self._tasks.put(lambda: self._computing.drop(unfinished))

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """The embeddings. Cancelling it before its turn leaves the thread to the others."""
        loop = asyncio.get_running_loop()
        compute = await loop.run_in_executor(self._preparing, prepare_embeddings, self._library, request)
        listener = Listener(loop, asyncio.Queue())
        has_left = threading.Event()

        def work() -> None:
            if has_left.is_set():
                return
            try:
                outcome = compute()
            except Exception as error:
                outcome = error
            _tell([(listener, outcome)])

        self._tasks.put(work)
        try:
            outcome: Embeddings | Exception = await listener.told.get()
        finally:
            has_left.set()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class _Computing:
    """What the computing thread has in hand. All is called in that thread."""

    def __init__(self, tasks: SimpleQueue[Task], num_threads: Callable[[], int] | None) -> None:
        self._tasks = tasks
        self._num_threads = num_threads
        self._batches: dict[Decoder, Batch[Answer]] = {}
        #: Of each base model, in the order in which they came.
        self._waiting: dict[Decoder, deque[Answer]] = {}
        self._listeners: dict[Answer, Listener] = {}
        self._untold: list[tuple[Listener, Sequence[Piece] | Exception]] = []

    def run(self) -> None:
        while True:
            for task in self._take_tasks():
                task()
            self._share_cores()
            for decoder in list(self._batches):
                self._advance(decoder)
                self._forget_idle(decoder)
            _tell(self._untold)
            self._untold = []

    def _share_cores(self) -> None:
        if self._num_threads is not None and (num_threads := self._num_threads()) != torch.get_num_threads():
            torch.set_num_threads(num_threads)

    def take(self, answers: Sequence[Answer], listener: Listener) -> None:
        """Make these, of one request."""
        for answer in answers:
            decoder = answer.script.decoder
            self._batches.setdefault(decoder, Batch(decoder))
            self._waiting.setdefault(decoder, deque()).append(answer)
            self._listeners[answer] = listener

    def drop(self, answers: Iterable[Answer]) -> None:
        """Nobody waits for these any more."""
        for answer in answers:
            if self._listeners.pop(answer, None) is not None:
                decoder = answer.script.decoder
                self._batches[decoder].leave(answer)
                if answer in self._waiting[decoder]:
                    self._waiting[decoder].remove(answer)

    def _take_tasks(self) -> list[Task]:
        """What was asked for since; where nothing is to be computed, the next that will be."""
        tasks = [] if self._listeners else [self._tasks.get()]
        while True:
            try:
                tasks.append(self._tasks.get_nowait())
            except Empty:
                return tasks

    def _advance(self, decoder: Decoder) -> None:
        """A step of the base model's batch, and before it the first tokens of those who join."""
        batch, waiting = self._batches[decoder], self._waiting[decoder]
        try:
            waiting.extendleft(reversed(batch.crowd_out()))
            outcomes = batch.step() if batch.members else []
            joining = batch.choose(waiting)
            for _ in joining:
                waiting.popleft()
            outcomes += batch.join(joining)
        except Exception as error:
            self._fail(decoder, error)
            return
        for answer, outcome in outcomes:
            listener = self._listeners[answer]
            if isinstance(outcome, Exception) or answer.is_finished:
                del self._listeners[answer]
            if outcome:
                self._untold.append((listener, outcome))

    def _forget_idle(self, decoder: Decoder) -> None:
        """A model that nobody asks any more may leave the memory."""
        if not self._batches[decoder].members and not self._waiting[decoder]:
            del self._batches[decoder], self._waiting[decoder]

    def _fail(self, decoder: Decoder, error: Exception) -> None:
        """Nobody knows in which state the batch is: all of it ends, and the next one begins anew."""
        lost = [answer for answer in self._listeners if answer.script.decoder is decoder]
        for answer in lost:
            self._untold.append((self._listeners.pop(answer), error))
        self._batches[decoder] = Batch(decoder)
        self._waiting[decoder].clear()


def _tell(untold: Sequence[tuple[Listener, Any]]) -> None:
    """Wake each event loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Listener, Any]]] = {}
    for listener, item in untold:
        by_loop.setdefault(listener.loop, []).append((listener, item))
    for loop, items in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: whoever listened is gone
            loop.call_soon_threadsafe(_put, items)


def _put(items: Sequence[tuple[Listener, Any]]) -> None:
    for listener, item in items:
        listener.told.put_nowait(item)
