"""Clients that connect and say nothing, or half of what they came to say, do not keep the server from the others."""

from __future__ import annotations

import resource
import socket
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from caesura.settings import EMBEDDED_BASE
from tests.serving import Running, Starter
from tests.world import wait_until

KEY = "sk-test-key-of-the-connections"
#: More than the server may hold open by the limit that it is started with.
NUM_CONNECTIONS = 1000
SOFT_LIMIT = 512
#: Of an answer, beside all those connections.
PATIENCE_S = 5.0
HALF_A_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: caesura\r\nAuthorization: Bearer"


@contextmanager
def soft_limit(num_files: int | None) -> Generator[None, None, None]:
    """This process, and what it starts, may hold so many files open; None: as many as are allowed."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if num_files is None else num_files, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    starter = Starter(tmp_path_factory.mktemp("connections") / "data")
    with soft_limit(SOFT_LIMIT):
        server = starter(CAESURA_API_KEY=KEY, CAESURA_THREADS="1")
    yield server
    starter.close()


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {KEY}", "connection": "close"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=PATIENCE_S) as client:
        body = {"model": EMBEDDED_BASE, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        client.post("/chat/completions", json=body, timeout=60).raise_for_status()  # the engine's start is not measured
        yield client


def connect(server: Running, said: bytes) -> socket.socket:
    url = urlsplit(server.url)
    connection = socket.create_connection((str(url.hostname), int(url.port or 0)), PATIENCE_S)
    connection.sendall(said)
    return connection


@pytest.mark.parametrize("said", [b"", HALF_A_HEAD], ids=["silent", "half a head"])
def test_a_thousand_connections_that_wait_do_not_keep_the_server_from_the_others_and_leave_no_file_open(
    server: Running, client: httpx.Client, said: bytes
) -> None:
    process = psutil.Process(server.process.pid)
    wait_until(lambda: not process.net_connections("tcp")[1:], "the server to have closed the first connections")
    num_files = process.num_fds()

    with soft_limit(None), ExitStack() as connections:
        for _ in range(NUM_CONNECTIONS):
            connections.enter_context(connect(server, said))
        wait_until(lambda: process.num_fds() >= num_files + NUM_CONNECTIONS, "the server to have taken them all")

        assert client.get("/models").json()["data"][0]["id"] == EMBEDDED_BASE
        body = {"model": EMBEDDED_BASE, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        assert client.post("/chat/completions", json=body).json()["choices"][0]["finish_reason"] in ("stop", "length")

    wait_until(lambda: process.num_fds() <= num_files, "the server to have closed what its clients closed")
    assert "Traceback" not in server.log
