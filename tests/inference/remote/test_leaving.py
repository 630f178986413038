"""The remote engine against vLLM's wire, word for word. What both engines promise is in test_engines.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

import pytest

from caesura.errors import EngineUnavailable
from caesura.inference import remote_adapters
from caesura.inference.engine import (
    EmbedRequest,
    Text,
)
from caesura.inference.remote import RemoteEngine
from caesura.jobs import Artifact
from tests.inference.fake_vllm import BASE, FakeVllm, event
from tests.inference.remote.asking import (
    CHAT,
    HELLO,
    answer,
    script,
)

# Leaving.


def test_leaving_early_ends_the_work_there(fake: FakeVllm, open_engine: Callable[..., RemoteEngine]) -> None:
    fake.answer = script(event(HELLO[1]), threading.Event())

    async def run() -> None:
        engine = open_engine()
        async with aclosing(engine.generate(CHAT)) as pieces:
            assert await anext(pieces) == Text("Hel")
            assert not fake.has_ended.is_set()
        assert await asyncio.to_thread(fake.has_ended.wait, 20)
        await engine.close()

    asyncio.run(run())


def test_leaving_before_the_first_piece_ends_the_work_there(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine]
) -> None:
    fake.answer = script(b": waits for its place\n\n", threading.Event())

    async def run() -> None:
        engine = open_engine()
        waiting = asyncio.create_task(answer(engine))
        while not fake.requests:
            await asyncio.sleep(0.005)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert await asyncio.to_thread(fake.has_ended.wait, 20)
        await engine.close()

    asyncio.run(run())


def test_closing_ends_answers_in_the_making(fake: FakeVllm, open_engine: Callable[..., RemoteEngine]) -> None:
    fake.answer = script(event(HELLO[1]), threading.Event())

    async def run() -> None:
        engine = open_engine()
        async with aclosing(engine.generate(CHAT)) as pieces:
            await anext(pieces)
            going_on = asyncio.create_task(anext(pieces))
            await asyncio.sleep(0)
            await engine.close()
            with pytest.raises(EngineUnavailable):
                await going_on
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await answer(engine)
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await engine.embed(EmbedRequest(["a"], BASE))
        await engine.close()
        assert await asyncio.to_thread(fake.has_ended.wait, 20)

    asyncio.run(run())


def test_closing_while_an_adapter_is_loaded_is_told_as_such(
    open_engine: Callable[..., RemoteEngine], adapter: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = threading.Event()
    monkeypatch.setattr(remote_adapters, "get_files", lambda *_of: closed.wait(20))

    async def run() -> None:
        engine = open_engine()
        waiting = asyncio.create_task(answer(engine, replace(CHAT, adapter=adapter)))
        while not engine._adapters._loads:
            await asyncio.sleep(0)
        await engine.close()
        closed.set()
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await waiting

    asyncio.run(run())
