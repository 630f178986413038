from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from caesura.settings import Settings
from tests.api.service import KEY, EngineDouble, HttpServer, Service, build_service


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """No settings of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("CAESURA_"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="package")
def http_server() -> Iterator[HttpServer]:
    server = HttpServer()
    yield server
    server.close()


@pytest.fixture(scope="package")
def client(http_server: HttpServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{http_server.origin}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="package")
def http(http_server: HttpServer) -> Iterator[httpx.Client]:
    """For what the official client does not let through."""
    with httpx.Client(base_url=http_server.origin, headers={"authorization": f"Bearer {KEY}"}, timeout=30) as client:
        yield client


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def service(settings: Settings, http_server: HttpServer, client: OpenAI, http: httpx.Client) -> Iterator[Service]:
    service = build_service(settings, http_server, client, http)
    yield service
    service.close()


@pytest.fixture(scope="package")
def shared_service(
    tmp_path_factory: pytest.TempPathFactory, http_server: HttpServer, client: OpenAI, http: httpx.Client
) -> Iterator[Service]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("shared"))
    service = build_service(settings, http_server, client, http)
    service.upload()
    yield service
    service.close()


@pytest.fixture
def idle_service(shared_service: Service, http_server: HttpServer) -> Service:
    """One for all the tests that leave nothing in it but the one file that it holds: to make one takes a while."""
    http_server.app = shared_service.app
    return shared_service


@pytest.fixture
def engine(service: Service) -> EngineDouble:
    return service.engine


@pytest.fixture
def good_body(service: Service) -> dict[str, Any]:
    """The smallest body that makes a job."""
    return {"model": "caesura-tiny", "training_file": service.upload()}


@pytest.fixture
def idle_body(idle_service: Service) -> dict[str, Any]:
    """The same for the service that is shared."""
    (file,) = idle_service.client.files.list().data
    return {"model": "caesura-tiny", "training_file": file.id}


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts the clock forward, by seconds."""
    real = time.time
    return lambda seconds: monkeypatch.setattr(time, "time", lambda: real() + seconds)
