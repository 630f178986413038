"""Speaking to a remote engine: the client, and the adapters that it is told to load."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel

from caesura.errors import EngineUnavailable, InvalidRequest, SettingsInvalid
from caesura.inference.remote_errors import AnyRequest, Refusal, nonsense_is_unavailable, read_error, to_error
from caesura.jobs import Artifact
from caesura.settings import Settings
from caesura.storage import Storage, get_files

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
#: Before the first token a request may wait for its place. A machine that lost its power is silent for ever.
SILENCE_TIMEOUT_S = 600.0


def open_client(settings: Settings) -> httpx.AsyncClient:
    """A client of the server at the settings' `engine_url`. Nothing is sent yet.

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
        return httpx.AsyncClient(
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


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class Adapters:
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
        name = _name(adapter)
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

    async def unload(self, adapter: Artifact) -> None:
        """Tell the server that the adapter is not needed any more; one that it does not know is no fault."""
        self.forget(adapter)
        response = await post(self._client, "/unload_lora_adapter", {"lora_name": _name(adapter)})
        await response.aclose()

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
        response = await post(self._client, "/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if response.status_code != 200:
            _check_load(await read_refusal(response), request)
        await response.aclose()

    async def _served(self, request: AnyRequest) -> set[str]:
        response = await self._client.get("/models")
        if response.status_code != 200:
            raise to_error(await read_refusal(response), request)
        with nonsense_is_unavailable():
            return {model.id for model in _Models.model_validate_json(response.content).data}


def _name(adapter: Artifact) -> str:
    """By which the server knows it."""
    return f"caesura-{adapter.prefix.replace('/', '-')}"


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


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> httpx.Response:
    """The reply, whose body is still to come."""
    # Escaped, so that a lone surrogate is no fault.
    request = client.build_request("POST", path, content=json.dumps(body).encode())
    return await client.send(request, stream=True)


async def read_refusal(response: httpx.Response) -> Refusal:
    """What the reply says, without the key, which some servers quote."""
    try:
        body = await response.aread()
    finally:
        await response.aclose()
    key = response.request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    return read_error(response.status_code, body.replace(key, b"***") if key else body)
