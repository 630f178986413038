"""The remote engine against vLLM's wire, word for word. What both engines promise is in test_engines.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from starlette.responses import Response

from caesura.inference.engine import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Piece,
)
from caesura.inference.remote import RemoteEngine
from caesura.storage import LocalStorage
from tests.inference.fake_vllm import BASE, DONE, Refused, event

CHAT = ChatRequest(BASE, None, [{"role": "user", "content": "Hi"}])
COMPLETION = CompletionRequest(BASE, None, "Once")
USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
#: An adapter's files, as far as the fake looks at them.
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}


def delta(index: int = 0, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]}


#: A whole answer.
HELLO = [delta(role="assistant", content=""), delta(content="Hel"), delta(content="lo"), delta(finish_reason="stop")]


def stream(*events: dict[str, Any]) -> bytes:
    return b"".join(map(event, events)) + DONE


def script(*parts: bytes | threading.Event) -> Callable[..., AsyncGenerator[bytes, None]]:
    """Every answer is these bytes; at an event it waits until the test sets it."""

    async def answer(_path: str, _body: dict[str, Any], _adapter: Path | None) -> AsyncGenerator[bytes, None]:
        for part in parts:
            if isinstance(part, threading.Event):
                while not part.is_set():
                    await asyncio.sleep(0.005)
            else:
                yield part

    return answer


def refuse(response: Response) -> Callable[..., AsyncGenerator[bytes, None]]:
    async def answer(_path: str, _body: dict[str, Any], _adapter: Path | None) -> AsyncGenerator[bytes, None]:
        raise Refused(response)
        yield b""

    return answer


def storage_in(folder: Path) -> LocalStorage:
    return LocalStorage(folder / "blobs")


async def answer(engine: RemoteEngine, request: ChatRequest | CompletionRequest = CHAT) -> list[Piece]:
    return [piece async for piece in engine.generate(request)]


def ask(engine: RemoteEngine, request: ChatRequest | CompletionRequest | EmbedRequest = CHAT) -> Any:
    """What the engine answers to one request, after which it is closed."""

    async def run() -> Any:
        try:
            return await (engine.embed(request) if isinstance(request, EmbedRequest) else answer(engine, request))
        finally:
            await engine.close()

    return asyncio.run(run())
