from __future__ import annotations

import asyncio
import errno
import io
import itertools
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from caesura.api import front
from caesura.api.multipart import MAX_FIELD_BYTES, MAX_FIELDS, Upload, receive_upload
from caesura.errors import CaesuraError, InvalidRequest, StorageUnavailable, TooLarge
from caesura.settings import Settings
from caesura.storage import LocalStorage, LocalWriter
from tests.api.service import KEY, HttpServer, Service, error_of, rows, wait_until

LIMIT = 1000


def part(name: str, data: bytes = b"fine-tune", more: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data + b"\r\n"


FILE = part("file", b"one\r\ntwo\n", '; filename="a.jsonl"')
PURPOSE = part("purpose")
END = b"--b--\r\n"


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "blobs")


def receive(
    storage: LocalStorage,
    chunks: Iterable[bytes],
    content_type: str = "multipart/form-data; boundary=b",
    leaves: bool = False,
    field: str = "file",
) -> Upload:
    """What is received of a body in these chunks; of a client who `leaves`, after the last of them."""
    ending: list[dict[str, Any]] = [{"type": "http.disconnect"} if leaves else {"type": "http.request"}]
    messages = itertools.chain(
        ({"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks), iter(ending)
    )

    async def next_message() -> dict[str, Any]:
        return next(messages)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [(b"content-type", content_type.encode("latin-1"))],
    }
    return asyncio.run(receive_upload(Request(scope, next_message), storage.writer("files/new"), LIMIT, field))


def kept(storage: LocalStorage) -> list[str]:
    return [key for key, _ in storage.list()]


def read(storage: LocalStorage, upload: Upload) -> bytes:
    with storage.open(upload.blob.key) as blob:
        return blob.read()


@pytest.mark.parametrize("parts", [(FILE, PURPOSE), (PURPOSE, FILE)], ids=["file first", "purpose first"])
@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 1000])
def test_a_form_is_the_same_in_any_order_and_in_any_pieces(
    storage: LocalStorage, parts: tuple[bytes, ...], chunk_bytes: int
) -> None:
    body = b"".join(parts) + END
    upload = receive(storage, (body[start : start + chunk_bytes] for start in range(0, len(body), chunk_bytes)))

    assert (upload.filename, upload.fields) == ("a.jsonl", {"purpose": "fine-tune"})
    assert read(storage, upload) == upload.head == b"one\r\ntwo\n"
    assert upload.blob.bytes == 9


def test_the_field_that_is_the_file_may_have_another_name(storage: LocalStorage) -> None:
    other = part("data", b"one", '; filename="a"')
    upload = receive(storage, [FILE.replace(b'"a.jsonl"', b'"b"'), other, END], field="data")

    assert (read(storage, upload), upload.filename, upload.fields) == (b"one", "a", {"file": "one\r\ntwo\n"})


@pytest.mark.parametrize("data", [b"--b", b"\r\n--", b"\r\n--b", b"\r", b"--b--", b"\r\n\r\n", b"\n--b\n"])
def test_a_file_may_hold_what_looks_like_the_boundary(storage: LocalStorage, data: bytes) -> None:
    data = data + b"x" + data
    head = b'--bound\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    body = head + data + b"\r\n--bound--\r\n"

    assert read(storage, receive(storage, [body], "multipart/form-data; boundary=bound")) == data


@pytest.mark.parametrize(
    ("more", "filename"),
    [
        ("", "upload"),
        ('; filename=""', "upload"),
        ("; filename=plain.jsonl", "plain.jsonl"),
        ('; filename="C:\\\\data\\\\a.jsonl"', "a.jsonl"),
        ('; filename="Füße.jsonl"', "Füße.jsonl"),
        ("; filename*=UTF-8''other; filename=\"a\"", "a"),
    ],
)
def test_a_file_without_a_name_is_called_upload(storage: LocalStorage, more: str, filename: str) -> None:
    assert receive(storage, [part("file", b"data", more), END]).filename == filename


@pytest.mark.parametrize("boundary", ["'()+_,-./:=? ", "a" * 70, "=======", "\xf0\x9f"])
def test_any_boundary_will_do(storage: LocalStorage, boundary: str) -> None:
    body = (FILE + END).replace(b"--b", b"--" + boundary.encode("latin-1"))

    upload = receive(storage, [body], f'multipart/form-data; boundary="{boundary}"')
    assert read(storage, upload) == b"one\r\ntwo\n"


@pytest.mark.parametrize(
    ("chunks", "fault", "message", "param"),
    [
        ([PURPOSE, END], InvalidRequest, "Missing required parameter: 'file'.", "file"),
        ([part("file", b"", '; filename="a"'), END], InvalidRequest, "The file is empty.", "file"),
        ([FILE, FILE, END], InvalidRequest, "The form has more than one 'file'.", "file"),
        ([PURPOSE, FILE], InvalidRequest, "The form broke off before its end.", None),
        ([PURPOSE, FILE[:-8]], InvalidRequest, "The form broke off before its end.", None),
        ([PURPOSE], InvalidRequest, "The form broke off before its end.", None),
        ([FILE[:20]], InvalidRequest, "The form broke off before its end.", None),
        ([], InvalidRequest, "The form broke off before its end.", None),
        ([b"no form at all"], InvalidRequest, "The form cannot be read: ", None),
        ([FILE.replace(b"\r\n\r\n", b"\r\nno header\r\n\r\n"), END], InvalidRequest, "The form cannot be read: ", None),
        (
            [FILE.replace(b"\r\n\r\n", b"\r\nX-Long: " + b"x" * 10**6 + b"\r\n\r\n"), END],
            InvalidRequest,
            "The form cannot be read: ",
            None,
        ),
        (
            [FILE.replace(b"\r\n\r\n", b"\r\nX-Many: x" * 1000 + b"\r\n\r\n"), END],
            InvalidRequest,
            "The form cannot be read: ",
            None,
        ),
        ([part("purpose", b"x" * (MAX_FIELD_BYTES + 1)), FILE, END], TooLarge, "The form's field 'purpose'", "purpose"),
        (
            [*(part(str(number)) for number in range(MAX_FIELDS + 1)), END],
            InvalidRequest,
            "The form has more than 32",
            None,
        ),
        (
            [part("file", b"x" * 600, '; filename="a"')[:-2], b"x" * 600, b"\r\n", END],
            TooLarge,
            "Maximum content size limit (1000) exceeded (1200 bytes read)",
            "file",
        ),
    ],
)
def test_a_faulty_form_is_refused_and_leaves_nothing(
    storage: LocalStorage, chunks: list[bytes], fault: type[CaesuraError], message: str, param: str | None
) -> None:
    with pytest.raises(fault) as caught:
        receive(storage, chunks)

    assert caught.value.message.startswith(message)
    assert caught.value.param == param
    assert kept(storage) == []


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([FILE, PURPOSE, END, b"--b", b"\r\n", b"\r", b'filename="', b":", b"\xff"]), max_size=8)
)
def test_whatever_comes_is_kept_whole_or_not_at_all(storage: LocalStorage, chunks: list[bytes]) -> None:
    try:
        upload = receive(storage, chunks)
    except InvalidRequest:
        assert kept(storage) == []
    else:
        assert len(read(storage, upload)) == upload.blob.bytes > 0
        storage.delete(upload.blob.key)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "application/json",
        "",
        "multipart/mixed; boundary=b",
        "multipart/form-data; boundary=" + "b" * 1000,
        "multipart/form-data; boundary=",
    ],
)
def test_what_is_no_form_is_refused_and_leaves_nothing(storage: LocalStorage, content_type: str) -> None:
    with pytest.raises(InvalidRequest):
        receive(storage, [FILE, END], content_type)

    assert kept(storage) == []


def test_a_client_who_leaves_leaves_nothing(storage: LocalStorage) -> None:
    with pytest.raises(ClientDisconnect):
        receive(storage, [PURPOSE, FILE], leaves=True)

    assert kept(storage) == []


def test_a_file_of_just_the_largest_size_is_taken(storage: LocalStorage) -> None:
    assert receive(storage, [part("file", b"x" * LIMIT, '; filename="a"'), END]).blob.bytes == LIMIT


def test_what_follows_the_form_is_left(storage: LocalStorage) -> None:
    assert read(storage, receive(storage, [FILE, END, b"more"])) == b"one\r\ntwo\n"


@pytest.mark.parametrize("step", ["write", "flush"])
def test_a_full_disk_is_told_and_leaves_nothing(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class FullFile(io.FileIO):
        pass

    setattr(FullFile, step, refuse)
    monkeypatch.setattr(Path, "open", lambda path, mode: FullFile(path, mode))
    with pytest.raises(StorageUnavailable):
        receive(storage, [FILE, END])

    monkeypatch.undo()
    assert kept(storage) == []


def test_a_full_disk_is_told_to_the_client_as_507(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise StorageUnavailable

    monkeypatch.setattr(LocalWriter, "write", refuse)
    with pytest.raises(openai.InternalServerError) as caught:
        service.upload()

    assert caught.value.status_code == 507
    assert "Nothing was kept" in caught.value.message
    assert list(service.client.files.list()) == []
    assert service.blobs() == []


class TestOverHttp:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return Settings(data_dir=tmp_path, max_file_bytes=100_000)

    def test_a_file_that_is_too_large_is_refused_with_413_and_leaves_nothing(self, service: Service) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            service.upload(b"x" * 20_000_000)

        assert caught.value.status_code == 413
        assert caught.value.code == "file_too_large"
        assert "Maximum content size limit (100000) exceeded" in caught.value.message
        assert service.blobs() == []
        assert list(service.client.files.list()) == []

    def test_an_upload_may_be_larger_than_other_bodies(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(front, "MAX_BODY_BYTES", 1000)

        assert service.client.files.retrieve(service.upload(rows(20))).bytes == len(rows(20)) > 1000

    def test_a_connection_that_breaks_leaves_nothing(self, service: Service, http_server: HttpServer) -> None:
        address = urlsplit(http_server.origin)
        head = (
            f"POST /v1/files HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {KEY}\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 50000\r\n\r\n"
        )
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(head.encode() + PURPOSE + FILE)
            wait_until(lambda: service.blobs() != [], "the upload has begun")
        wait_until(lambda: service.blobs() == [], "the upload was given up")

        assert list(service.client.files.list()) == []

    @pytest.mark.parametrize(
        ("data", "message", "param", "code"),
        [
            ({}, "Missing required parameter: 'purpose'.", "purpose", "missing_required_parameter"),
            (
                {"purpose": "fun"},
                "Invalid value: 'fun'. Supported values are: "
                "'assistants', 'batch', 'fine-tune', 'vision', 'user_data', and 'evals'.",
                "purpose",
                "invalid_value",
            ),
            ({"purpose": "fine-tune", "x": "1"}, "Unknown parameter: 'x'.", "x", "unknown_parameter"),
        ],
    )
    def test_a_faulty_field_is_refused_and_leaves_nothing(
        self, service: Service, data: dict[str, str], message: str, param: str, code: str
    ) -> None:
        answer = service.http.post("/v1/files", files={"file": ("a.jsonl", rows())}, data=data)

        assert answer.status_code == 400
        assert error_of(answer) == {
            "message": message,
            "type": "invalid_request_error",
            "param": param,
            "code": code,
        }
        assert service.blobs() == []

    def test_a_body_that_is_no_form_is_refused_in_words(self, service: Service) -> None:
        answer = service.http.post("/v1/files", json={"purpose": "fine-tune"})

        assert answer.status_code == 400
        assert "multipart/form-data" in error_of(answer)["message"]
