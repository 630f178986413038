"""What no client of good will sends, mostly over a bare socket: it is refused, kept nowhere, and hinders nobody."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from tests.api.service import KEY, Service, error_of, rows, wait_until

#: However much is sent, so little may stay.
MAX_GROWTH_BYTES = 32 * 2**20


@contextmanager
def connected(service: Service) -> Iterator[socket.socket]:
    host, port = service.http_server.origin.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        yield connection


def head(method: str, path: str, *lines: str) -> bytes:
    first = (f"{method} {path} HTTP/1.1", "host: x", f"authorization: Bearer {KEY}", *lines)
    return "\r\n".join((*first, "", "")).encode("latin-1")


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes, or an answer of a known length is whole."""
    data = b""
    while True:
        try:
            more = connection.recv(65536)
        except ConnectionResetError:
            return data
        data += more
        begin, separator, body = data.partition(b"\r\n\r\n")
        if not more or (separator and len(body) >= _length(begin)):
            return data


def _length(begin: bytes) -> int:
    for line in begin.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 1 << 60


def is_unharmed(service: Service) -> bool:
    """The server answers, and holds nothing."""
    return service.http.get("/v1/files").json()["data"] == [] and service.blobs() == []


@pytest.fixture
def memory() -> Iterator[None]:
    """The server runs in this process: what it keeps shows here."""
    process = psutil.Process()
    before = process.memory_info().rss
    yield
    assert process.memory_info().rss - before < MAX_GROWTH_BYTES


@pytest.mark.usefixtures("memory")
def test_headers_without_end_are_cut_off(service: Service) -> None:
    num_sent = 0
    with connected(service) as connection:
        connection.sendall(head("GET", "/v1/models")[:-2])
        line = b"x-filler: " + b"a" * 8000 + b"\r\n"
        try:
            while num_sent < 2**30:
                connection.sendall(line * 8)
                num_sent += len(line) * 8
        except OSError:
            pass

    assert num_sent < 64 * 2**20
    assert is_unharmed(service)


@pytest.mark.usefixtures("memory")
def test_a_header_without_end_is_cut_off(service: Service) -> None:
    num_sent = 0
    with connected(service) as connection:
        connection.sendall(head("GET", "/v1/models")[:-2] + b"x-filler: ")
        try:
            while num_sent < 2**30:
                connection.sendall(b"a" * 65536)
                num_sent += 65536
        except OSError:
            pass

    assert num_sent < 64 * 2**20
    assert is_unharmed(service)


def test_a_body_that_is_shorter_than_it_says_is_given_up_with_its_client(service: Service) -> None:
    with connected(service) as connection:
        connection.sendall(
            head("POST", "/v1/fine_tuning/jobs", "content-type: application/json", "content-length: 500")
            + b'{"model": "'
        )
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)

    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert is_unharmed(service)
    assert service.client.fine_tuning.jobs.list().data == []


def test_an_upload_that_is_shorter_than_it_says_leaves_nothing(service: Service) -> None:
    with connected(service) as connection:
        form = b'--b\r\ncontent-disposition: form-data; name="file"; filename="t.jsonl"\r\n\r\n' + rows()
        lines = ("content-type: multipart/form-data; boundary=b", "content-length: 100000")
        connection.sendall(head("POST", "/v1/files", *lines) + form)
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)

    # The connection is closed before the endpoint hears of it and takes back what it wrote.
    wait_until(lambda: is_unharmed(service), "nothing is left")


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "99999999999999999999999999"])
def test_a_length_that_is_none_is_refused(service: Service, length: str) -> None:
    with connected(service) as connection:
        lines = ("content-type: application/json", f"content-length: {length}")
        connection.sendall(head("POST", "/v1/fine_tuning/jobs", *lines) + b"{}")
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)

    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert is_unharmed(service)


def test_what_is_behind_a_body_is_another_request(service: Service) -> None:
    """A body longer than it says cannot become a part of the next answer: it is no request, and refused as such."""
    with connected(service) as connection:
        lines = ("content-type: application/json", "content-length: 2")
        connection.sendall(head("POST", "/v1/fine_tuning/jobs", *lines) + b"{}GARBAGE\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while more := connection.recv(65536):
            answer += more

    assert answer.startswith(b"HTTP/1.1 400")
    assert b"HTTP/1.1 2" not in answer
    assert is_unharmed(service)


def test_a_slow_client_hinders_nobody(service: Service) -> None:
    with connected(service) as connection:
        request = head("POST", "/v1/files", "content-type: multipart/form-data; boundary=b", "content-length: 1000")
        for byte in request[:-1]:
            connection.sendall(bytes([byte]))
            if byte == 10:
                assert service.http.get("/v1/models").status_code == 200
        connection.sendall(request[-1:] + b"--b")
        assert service.http.get("/v1/models").status_code == 200

    assert is_unharmed(service)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/..%2f..%2fetc%2fpasswd",
        "/v1/files/../../etc/passwd",
        "/v1/files/%2e%2e/%2e%2e/api_key",
        "/v1/files/file-x%00.jsonl/content",
        "/v1/files/%ff%fe",
        "/v1/models/..%2f..%2fapi_key",
        "/v1/models/%00",
        "/v1/fine_tuning/jobs/%00/events",
        "/v1/fine_tuning/jobs/" + "a" * 5000,
        "/v1/fine_tuning/jobs/'%20OR%201=1--",
        "/v1/fine_tuning/checkpoints/..%2f..%2fx/permissions",
        "/v1/uploads/..%2fx/cancel",
    ],
)
def test_an_id_that_is_none_is_not_found(idle_service: Service, path: str) -> None:
    method = "POST" if path.endswith("cancel") else "GET"
    with connected(idle_service) as connection:
        connection.sendall(head(method, path, "content-length: 0"))
        answer = read_all(connection)

    begin, _, body = answer.partition(b"\r\n\r\n")
    assert begin.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), answer
    assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}
    assert b"/data" not in body


@pytest.mark.parametrize("name", ["../../evil.jsonl", "/etc/passwd", "a\x00b.jsonl", "..", "C:\\x.jsonl", "x" * 3000])
def test_a_files_name_is_a_name_and_no_path(service: Service, name: str) -> None:
    before = set(os.listdir(service.server.settings.data_dir))
    files = {"file": (name, rows())}
    answer = service.http.post("/v1/files", files=files, data={"purpose": "fine-tune"})

    assert answer.status_code in (200, 400)
    assert set(os.listdir(service.server.settings.data_dir)) - before <= {"blobs"}
    assert all(key.startswith("files/") and ".." not in key for key in service.blobs())


GOOD: dict[str, Any] = {"model": "caesura-tiny", "training_file": "file-x"}


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ('{"model": "m", "training_file": "f", "seed": 1' + "0" * 400 + "}", "seed"),
        ('{"model": "m", "training_file": "f", "seed": 1e400}', "seed"),
        ('{"model": "m", "training_file": "f", "seed": NaN}', None),
        ('{"model": "m", "training_file": "f", "seed": Infinity}', None),
        ('{"model": "m", "training_file": "f", "hyperparameters": {"learning_rate_multiplier": NaN}}', None),
        ('{"model": "m", "training_file": "f", "hyperparameters": {"learning_rate_multiplier": 1e999}}', None),
        ('{"model": "m", "training_file": "a\\u0000b"}', None),
        ('{"model": "a\\u0000b", "training_file": "f"}', None),
        ('{"model": "m", "training_file": "f", "metadata": {"\\ud800": "x"}}', None),
        ("[" * 100_000, None),
        ('{"a":' * 100_000, None),
        ('{"model": ["m"], "training_file": {"f": 1}}', "model"),
        ('"text"', None),
        ("17", None),
        ("null", None),
        ("\ufeff{", None),
    ],
)
def test_json_that_nobody_means_is_refused_and_nothing_is_stored(
    service: Service, text: str, param: str | None
) -> None:
    answer = service.http.post(
        "/v1/fine_tuning/jobs", content=text.encode("utf-8", "replace"), headers={"content-type": "application/json"}
    )

    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert param is None or error["param"] == param
    assert len(answer.content) < 10_000
    assert service.client.fine_tuning.jobs.list().data == []


def test_of_a_key_that_comes_twice_the_last_counts(service: Service) -> None:
    file = service.upload()
    text = f'{{"model": "nobody", "training_file": "{file}", "model": "caesura-tiny"}}'
    answer = service.http.post("/v1/fine_tuning/jobs", content=text, headers={"content-type": "application/json"})

    assert answer.status_code == 200
    assert answer.json()["model"] == "caesura-tiny"


@pytest.mark.usefixtures("memory")
def test_a_body_without_end_is_cut_off(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caesura.api.front.MAX_BODY_BYTES", 2**20)
    num_sent = 0
    with connected(service) as connection:
        lines = ("content-type: application/json", "transfer-encoding: chunked")
        connection.sendall(head("POST", "/v1/fine_tuning/jobs", *lines))
        chunk = b"10000\r\n" + b"1" * 65536 + b"\r\n"
        while not select.select([connection], [], [], 0)[0]:
            connection.sendall(chunk)
            num_sent += 65536
        answer = read_all(connection)

    assert num_sent < 64 * 2**20
    assert answer.startswith(b"HTTP/1.1 413")
    assert is_unharmed(service)
