"""The server is killed while a part comes, and while parts are joined."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from openai import OpenAI

from caesura.store import open_store
from tests.api.service import wait_until
from tests.serving import Running, Starter

KEY = "sk-test-key-of-the-uploads"
#: More than is looked at before the joining begins.
FIRST, SECOND = b"a" * 100_000, b"b" * 1000


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path / "data")
    yield starter
    starter.close()


def connect(running: Running) -> OpenAI:
    return OpenAI(base_url=running.url, api_key=KEY, max_retries=0)


def test_an_upload_survives_the_server_at_any_point(start: Starter, tmp_path: Path) -> None:
    server = start(CAESURA_API_KEY=KEY)
    blobs = tmp_path / "data" / "blobs"
    upload = connect(server).uploads.create(
        bytes=len(FIRST + SECOND), filename="a", mime_type="text/plain", purpose="user_data"
    )
    first = connect(server).uploads.parts.create(upload.id, data=FIRST).id

    address = urlsplit(server.url)
    head = (
        f"POST /v1/uploads/{upload.id}/parts HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {KEY}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 50000\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="data"\r\n\r\nhalf of it'
    )
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode())
        wait_until(lambda: list(blobs.glob("parts/*.tmp")) != [], "the part has begun")
        server.end(signal.SIGKILL)

    server = start(CAESURA_API_KEY=KEY)
    second = connect(server).uploads.parts.create(upload.id, data=SECOND).id
    store = open_store(tmp_path / "data")
    parts = store.uploads.list_parts(upload.id)
    assert [part.id for part in parts] == [first, second]

    # A pipe in the second part's place holds the joining up where it begins to read it.
    stored = blobs / parts[1].blob
    stored.rename(aside := stored.with_name("aside"))
    os.mkfifo(stored)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(connect(server).uploads.complete, upload.id, part_ids=[first, second])
        wait_until(lambda: list(blobs.glob("files/*.tmp")) != [], "the joining has begun")
        server.end(signal.SIGKILL)
        assert isinstance(call.exception(), openai.APIConnectionError)
    aside.replace(stored)

    server = start(CAESURA_API_KEY=KEY)
    client = connect(server)
    assert list(client.files.list()) == []
    assert store.recovery.referenced_blobs() == {part.blob for part in parts}
    done = client.uploads.complete(upload.id, part_ids=[first, second])
    assert done.file is not None
    assert client.files.content(done.file.id).content == FIRST + SECOND
    assert [file.id for file in client.files.list()] == [done.file.id]
    store.close()
