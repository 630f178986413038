"""A remote engine: an OpenAI-compatible server, vLLM in particular, that answers in the place of the engine's process.

Adapters are loaded there when they are first used: by vLLM's endpoint for it, which reads them from this server's data
folder. What differs from the engine of this server stands in docs/vllm.md.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel

from caesura.errors import EngineUnavailable, InvalidRequest, SettingsInvalid
from caesura.inference.engine import ChatRequest, CompletionRequest, Embeddings, EmbedRequest, Piece
from caesura.inference.remote_errors import (
    AnyRequest,
    Refusal,
    nonsense_is_unavailable,
    read_error,
    to_error,
    transport_is_unavailable,
)
from caesura.inference.remote_wire import Answers, read_embeddings, to_body, to_path
from caesura.jobs import Artifact
from caesura.settings import Settings
from caesura.storage import Storage, get_files

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
#: Before the first token a request may wait for its place. A machine that lost its power is silent for ever.
SILENCE_TIMEOUT_S = 600.0


class RemoteEngine:
    """An `Engine` over HTTP. Nothing that was asked is asked again, but for an adapter that the server had dropped.

    `blobs` is the folder of `storage`, as the remote server sees it too.
    """

    def __init__(self, settings: Settings, storage: Storage, blobs: Path, client: httpx.AsyncClient) -> None:
        self._settings = settings
        self._client = client
        self._adapters = _Adapters(storage, blobs, client)
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
                    raise to_error(await _read_refusal(response), request)
                yield response
            finally:
                await response.aclose()

    async def _post(self, request: AnyRequest) -> httpx.Response:
        base = self._base_name(request)
        if request.adapter is None:
            return await _post(self._client, to_path(request), to_body(request, base))
        for _ in range(2):
            name = await self._adapters.load(request.adapter, base, request)
            response = await _post(self._client, to_path(request), to_body(request, name))
            if response.status_code != 404:
                return response
            refusal = await _read_refusal(response)
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

    Raises SettingsInvalid where the URL is none, or the environment lacks the key.
    """
    assert settings.engine_url is not None
    headers = {b"accept-encoding": b"identity", b"content-type": b"application/json"}
    variable = settings.engine_api_key_env
    if variable is not None:
        key = os.environ.get(variable)
        if not key:
            raise SettingsInvalid(
                f"The key of the engine is looked for in the environment variable {variable}, as 'engine_api_key_env' "
                "says: set it."
            )
        headers[b"authorization"] = b"Bearer " + key.encode()
    try:
        client = httpx.AsyncClient(
            base_url=settings.engine_url,
            headers=headers,
            verify=httpx.create_ssl_context(),
            timeout=httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=None),
            # A connection serves one request: one kept alive may be closed by the server just when it is used again.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            follow_redirects=False,
            trust_env=False,
        )
    except httpx.InvalidURL as error:
        raise SettingsInvalid(f"The setting 'engine_url' is no URL: {error}.") from error
    return RemoteEngine(settings, storage, blobs, client)


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class _Adapters:
    """The adapters that the server has been told to load: each once, however many ask for it at the same time."""

    def __init__(self, storage: Storage, blobs: Path, client: httpx.AsyncClient) -> None:
        self._storage = storage
        self._blobs = blobs
        self._client = client
        #: By the artifact's prefix, which is written once; those that failed are taken out.
        self._loads: dict[str, asyncio.Task[None]] = {}

    async def load(self, adapter: Artifact, base: str, request: AnyRequest) -> str:
        """The adapter's name there, once it is loaded; who asks may leave before that.

        Raises BlobDamaged before the server hears of an adapter that is not what was written; InvalidRequest, param
        `model`, where the server cannot take it.
        """
        name = f"caesura-{adapter.prefix.replace('/', '-')}"
        load = self._loads.get(adapter.prefix)
        if load is None:
            load = self._loads[adapter.prefix] = asyncio.create_task(self._load(name, adapter, base, request))
            load.add_done_callback(lambda done: self._drop_if_failed(adapter.prefix, done))
        try:
            await asyncio.shield(load)
        except asyncio.CancelledError:
            if load.cancelled():
                raise EngineUnavailable("The server is shutting down.") from None
            raise
        return name

    def forget(self, adapter: Artifact) -> None:
        """The next `load` tells the server again, unless that is already under way."""
        load = self._loads.get(adapter.prefix)
        if load is not None and load.done():
            del self._loads[adapter.prefix]

    def close(self) -> None:
        for load in self._loads.values():
            load.cancel()

    def _drop_if_failed(self, prefix: str, load: asyncio.Task[None]) -> None:
        if (load.cancelled() or load.exception() is not None) and self._loads.get(prefix) is load:
            del self._loads[prefix]

    async def _load(self, name: str, adapter: Artifact, base: str, request: AnyRequest) -> None:
        await asyncio.to_thread(get_files, self._storage, adapter)
        served = await self._served(request)
        if base not in served:
            # vLLM would put the adapter on any base whose layers have its shapes.
            raise InvalidRequest(
                f"The server at 'engine_url' does not serve the base model '{base}': start it with that model under "
                "that name (docs/vllm.md).",
                param="model",
                code="model_not_available",
            )
        if name in served:
            return
        folder = (self._blobs / adapter.prefix).absolute()
        response = await _post(self._client, "/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if response.status_code != 200:
            _check_load(await _read_refusal(response), request)
        await response.aclose()

    async def _served(self, request: AnyRequest) -> set[str]:
        response = await self._client.get("/models")
        if response.status_code != 200:
            raise to_error(await _read_refusal(response), request)
        with nonsense_is_unavailable():
            return {model.id for model in _Models.model_validate_json(response.content).data}


def _check_load(refusal: Refusal, request: AnyRequest) -> None:
    """Raise what a refused load means; nothing where the adapter is there already. vLLM's words are for the log, since
    they name folders."""
    words = refusal.message.lower()
    if "already been loaded" in words:
        return
    if refusal.status in (401, 403, 429) or refusal.status > 501:
        raise to_error(refusal, request)
    logger.error("the server at 'engine_url' loads no adapter, status %d: %s", refusal.status, refusal.message)
    if "no adapter found" in words:
        why = "does not find the adapter's files: the data folder must be visible to it under the same path"
    elif refusal.status in (404, 405):
        why = "loads no adapters: start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    else:
        why = (
            f"cannot take this adapter (status {refusal.status}; this server's log says more). Most often its "
            "--max-lora-rank is below the adapter's rank, or it was started without --enable-lora"
        )
    raise InvalidRequest(f"The server at 'engine_url' {why} (docs/vllm.md).", param="model", code="model_not_available")


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> httpx.Response:
    """The reply, whose body is still to come."""
    # Escaped, so that a lone surrogate is no fault.
    request = client.build_request("POST", path, content=json.dumps(body).encode())
    return await client.send(request, stream=True)


async def _read_refusal(response: httpx.Response) -> Refusal:
    """What the reply says, without the key, which some servers quote."""
    try:
        body = await response.aread()
    finally:
        await response.aclose()
    key = response.request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    return read_error(response.status_code, body.replace(key, b"***") if key else body)
