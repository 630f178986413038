"""A remote engine: an OpenAI-compatible server, vLLM in particular, that answers in the place of the engine's process.

Adapters are loaded there when they are first used: by vLLM's endpoint for it, which reads them from this server's data
folder. What differs from the engine of this server stands in docs/vllm.md.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from caesura.errors import EngineUnavailable, InvalidRequest
from caesura.inference.engine import ChatRequest, CompletionRequest, Embeddings, EmbedRequest, Piece
from caesura.inference.remote_adapters import Adapters, open_client, post, read_refusal
from caesura.inference.remote_errors import (
    AnyRequest,
    to_error,
    transport_is_unavailable,
)
from caesura.inference.remote_wire import Answers, read_embeddings, to_body, to_path
from caesura.settings import Settings
from caesura.storage import Storage

logger = logging.getLogger(__name__)


class RemoteEngine:
    """An `Engine` over HTTP. Nothing that was asked is asked again, but for an adapter that the server had dropped."""

    def __init__(self, settings: Settings, adapters: Adapters, client: httpx.AsyncClient) -> None:
        self._settings = settings
        self._client = client
        self._adapters = adapters
        self._is_closed = False

    async def generate(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[Piece, None]:
        answers = Answers(request)
        async with self._ask(request) as response:
            async for part in response.aiter_bytes():
                for piece in answers.feed(part):
                    yield piece
                if answers.is_over:
                    break
        for piece in answers.finish():
            yield piece

    async def embed(self, request: EmbedRequest) -> Embeddings:
        if not request.inputs:
            return Embeddings([], 0)
        async with self._ask(request) as response:
            return read_embeddings(await response.aread(), len(request.inputs))

    async def close(self) -> None:
        self._is_closed = True
        self._adapters.close()
        await self._client.aclose()

    @asynccontextmanager
    async def _ask(self, request: AnyRequest) -> AsyncGenerator[httpx.Response, None]:
        """The beginning of a successful reply. Leaving it closes the connection, at which the server ends its work."""
        if self._is_closed:
            raise EngineUnavailable("The server is shutting down.")
        with transport_is_unavailable():
            response = await self._post(request)
            try:
                if response.status_code != 200:
                    raise to_error(await read_refusal(response), request)
                yield response
            finally:
                await response.aclose()

    async def _post(self, request: AnyRequest) -> httpx.Response:
        base = self._base_name(request)
        if request.adapter is None:
            return await post(self._client, to_path(request), to_body(request, base))
        if request.adapter.is_full:
            raise InvalidRequest(
                "This model has weights of its own (adapter.type 'full'), and the server at 'engine_url' is told of "
                "adapters alone (docs/vllm.md). Export the model with format=merged, and serve it there as a base.",
                param="model",
                code="model_not_available",
            )
        for _ in range(2):
            name = await self._adapters.load(request.adapter, base, request)
            response = await post(self._client, to_path(request), to_body(request, name))
            if response.status_code != 404:
                return response
            refusal = await read_refusal(response)
            if name not in refusal.message:  # it is the path that is not there
                raise to_error(refusal, request)
            logger.info("the server at 'engine_url' has dropped the adapter '%s': it is loaded again", name)
            self._adapters.forget(request.adapter)
        raise EngineUnavailable("The server at 'engine_url' has dropped this model's adapter twice. Please try again.")

    def _base_name(self, request: AnyRequest) -> str:
        """The base model's name there."""
        if request.base is None:
            if self._settings.embedding_model is None:
                raise InvalidRequest(
                    "No embedding model is configured. Set 'embedding_model' in caesura.toml to its name on the server "
                    "at 'engine_url'.",
                    code="model_not_available",
                )
            return self._settings.embedding_model
        settings = self._settings.bases().get(request.base)
        if settings is None:
            raise InvalidRequest(
                f"The base model '{request.base}' is not one of this server's. Add it under [models] in caesura.toml.",
                param="model",
                code="model_not_available",
            )
        return settings.reference(request.base)


def open_remote_engine(settings: Settings, storage: Storage, blobs: Path) -> RemoteEngine:
    """The engine at the settings' `engine_url`. Nothing is sent yet.

    `blobs` is the folder of `storage`, as the remote server sees it too. Raises SettingsInvalid as `open_client`.
    """
    client = open_client(settings)
    return RemoteEngine(settings, Adapters(storage, blobs, client), client)
