"""The composition root of the server: its parts are built here, and only here, from the settings."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from caesura import __version__
from caesura.access import API_KEY_FILE
from caesura.api import (
    chat,
    completions,
    dashboard,
    embeddings,
    errors,
    events,
    files,
    graders,
    jobs,
    metrics,
    models,
    permissions,
    responses,
    rollouts,
    uploads,
    webhooks,
)
from caesura.api.admission import Admission
from caesura.api.front import Front
from caesura.api.gate import Gate
from caesura.api.idempotency import Idempotency
from caesura.api.keyring import KeyRing
from caesura.api.state import AnyServer, Server
from caesura.deliverer import Deliverer, read_webhooks
from caesura.errors import SettingsInvalid
from caesura.executors.local import LocalExecutor
from caesura.graders.build import Tools
from caesura.graders.calls import open_client
from caesura.graders.comparer import Comparer
from caesura.graders.judges import Judges, find_judge
from caesura.graders.sandbox import Level, Sandbox, find_level
from caesura.ids import new_api_key, new_token
from caesura.inference.engine import EmbedRequest
from caesura.inference.process import EngineProcess
from caesura.inference.remote import open_remote_engine
from caesura.integrations.shipper import Shipper
from caesura.scheduler import Scheduler
from caesura.settings import Settings
from caesura.storage import LocalStorage
from caesura.store import open_store
from caesura.tenancy import Caller, hash_key

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FirstKey:
    text: str
    #: It was made just now: this is the one time to show it.
    is_new: bool


def build_server(settings: Settings) -> Server:
    """Open what the server works with. Nothing runs yet."""
    store = open_store(settings.data_dir, settings.secret_database_url)
    store.keys.adopt(settings.organization)
    store.webhooks.configure(read_webhooks(settings.webhooks))
    blobs = settings.data_dir / "blobs"
    storage = LocalStorage(blobs)
    sandbox_level = find_level()
    told = logger.info if sandbox_level is Level.STRONG else logger.warning
    told("Python graders are jailed at the level '%s' (docs/sandbox.md)", sandbox_level)
    scheduler = Scheduler(store, storage, settings.slots, lambda wake: LocalExecutor(settings, wake), settings.lease_s)
    is_remote = settings.engine_url is not None
    return Server(
        settings=settings,
        store=store,
        storage=storage,
        scheduler=scheduler,
        engine=open_remote_engine(settings, storage, blobs) if is_remote else EngineProcess(settings),
        sandbox_level=sandbox_level,
        worker_key=new_token(),
        started_at=int(time.time()),
    )


def build_app(server: Server, api_key: str) -> FastAPI:
    """The ASGI application: the scheduler runs while it does."""

    deliverer = Deliverer(server.store.webhooks, server.settings.allowed_webhook_hosts)
    shipper = Shipper(server.store, server.settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None, None]:
        server.scheduler.start()
        deliverer.start()
        shipper.start()
        yield
        await app.state.grader_tools.close()
        await run_in_threadpool(server.scheduler.stop)
        await run_in_threadpool(shipper.stop)
        await run_in_threadpool(deliverer.stop)
        await server.engine.close()
        server.store.close()

    app = FastAPI(
        title="Caesura",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,
    )
    app.state.server = server
    app.state.admission = Admission(server.settings.max_answers)
    app.state.grader_tools = _build_tools(server, app)
    app.state.metrics = metrics.Metrics(server)
    settings = server.settings
    gate = Gate(_build_keyring(server, api_key), settings.requests_per_minute)
    app.add_middleware(Idempotency, store=server.store)  # what is added later comes first
    app.add_middleware(Front, gate=gate, settings=settings, see=app.state.metrics.see)
    errors.install(app)
    app.add_api_route("/healthz", healthz)
    # Routes are tried in this order, one by one: what is asked for most often comes first.
    resources = (jobs, events, files, uploads, rollouts, permissions, models, webhooks)
    for resource in (*resources, chat, completions, embeddings, responses, graders, metrics, dashboard):
        # Into one list: the framework's own way of including them takes as long as all the rest of a short answer.
        app.router.routes.extend(resource.router.routes)
    return app


def _build_keyring(server: Server, api_key: str) -> KeyRing:
    first = Caller(key_id=None, organization=server.settings.organization)
    fixed = {api_key: first, server.worker_key: replace(first, is_server=True)}
    return KeyRing(server.store.keys, {hash_key(key.encode()): caller for key, caller in fixed.items()})


def _build_tools(server: Server, app: FastAPI) -> Tools:
    """What graders work with. They ask this server's own models by its own API, without a socket between."""
    settings = server.settings
    own = httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://caesura/v1",
        headers={b"authorization": b"Bearer " + server.worker_key.encode()},
        timeout=None,
    )

    async def embed(texts: list[str]) -> list[list[float]]:
        return (await server.engine.embed(EmbedRequest(texts))).vectors

    for name in settings.judges:
        find_judge(settings, name, own_project=None)  # a key that is missing is told at the start
    return Tools(
        judges=Judges(own),
        comparer=Comparer(),
        find_judge=server.find_judge,
        sandbox=None if server.sandbox_level is Level.NONE else Sandbox(server.sandbox_level),
        client=open_client(max_idle_connections=0),
        embed=None if settings.embedding_model is None else embed,
        allowed_private_hosts=tuple(settings.allowed_private_hosts),
    )


async def healthz(server: AnyServer) -> dict[str, str]:
    return {"status": "ok", "version": __version__, "sandbox": server.sandbox_level}


def load_api_key(settings: Settings) -> FirstKey:
    """The key from the settings, else the one in the data folder, else a new one, kept there with mode 0600."""
    if settings.api_key is not None:
        return FirstKey(settings.api_key.get_secret_value(), is_new=False)
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = settings.data_dir / API_KEY_FILE
    if not path.exists():
        with suppress(FileExistsError):  # a server that started at the same time was first
            return FirstKey(_keep_new_key(path), is_new=True)
    key = path.read_text().strip()
    if not key:
        raise SettingsInvalid(f"The key file '{path}' is empty. Delete it, and the next start makes a new key.")
    return FirstKey(key, is_new=False)


def _keep_new_key(path: Path) -> str:
    """Whole or not at all: no start, however it ends, leaves a file without its key."""
    key = new_api_key()
    temporary = path.with_name(f".{path.name}.{new_token()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(key + "\n")
            file.flush()
            os.fsync(descriptor)
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return key
