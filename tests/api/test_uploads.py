from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Upload

from caesura.api import front
from caesura.settings import Settings
from tests.api.service import KEY, HttpServer, Service, assert_shape, error_of, rows, wait_until
from tests.api.uploading import BODY, add, ask, content, create, is_pending

UPLOAD = {
    "id": str,
    "object": str,
    "bytes": int,
    "created_at": int,
    "expires_at": int,
    "filename": str,
    "purpose": str,
    "status": str,
    "file": type(None),
}
MIB = 2**20


@pytest.fixture
def foreign(service: Service, http_server: HttpServer) -> Iterator[OpenAI]:
    """A client of another project."""
    _, key = service.store.keys.create("theirs", organization="caesura", project="other")
    with OpenAI(base_url=f"{http_server.origin}/v1", api_key=key, max_retries=0) as client:
        yield client


def test_an_upload_and_its_parts_are_told_in_openais_form(service: Service) -> None:
    before = int(time.time())
    created = service.http.post("/v1/uploads", json=BODY).json()
    part = service.http.post(f"/v1/uploads/{created['id']}/parts", files={"data": b"abcdef"}).json()

    assert_shape(created, UPLOAD)
    assert re.fullmatch(r"upload_[A-Za-z0-9]{24}", created["id"])
    told = {key: created[key] for key in ("object", "bytes", "filename", "purpose", "status")}
    assert told == {"object": "upload", "bytes": 6, "filename": "a.bin", "purpose": "evals", "status": "pending"}
    assert created["expires_at"] - created["created_at"] == 3600
    assert before <= created["created_at"] <= time.time()
    assert_shape(part, {"id": str, "object": str, "created_at": int, "upload_id": str})
    assert re.fullmatch(r"part_[A-Za-z0-9]{24}", part["id"])
    assert (part["object"], part["upload_id"]) == ("upload.part", created["id"])


def test_the_parts_are_joined_in_the_order_named_and_those_not_named_are_left(service: Service) -> None:
    upload = create(service)
    last, _, first = add(service, upload, b"def", b"left out", b"abc")
    done = service.client.uploads.complete(upload.id, part_ids=[first, last])

    assert done.model_copy(update={"file": None, "status": "pending"}) == upload
    assert (done.status, content(service, done)) == ("completed", b"abcdef")
    assert done.file is not None
    assert done.file == service.client.files.retrieve(done.file.id)
    assert (done.file.filename, done.file.purpose, done.file.bytes) == ("train.jsonl", "evals", 6)


def test_a_job_can_be_made_of_an_upload(service: Service) -> None:
    upload = create(service, len(rows()), "fine-tune")
    parts = add(service, upload, rows()[:100], rows()[100:])
    done = service.client.uploads.complete(upload.id, part_ids=parts)
    assert done.file is not None
    job_id = service.create_job(training_file=done.file.id)
    service.validate()

    assert service.client.fine_tuning.jobs.retrieve(job_id).status == "queued"


@pytest.mark.parametrize("part_size", [None, 100])
def test_the_sdks_helper_cuts_a_file_and_joins_it(service: Service, tmp_path: Path, part_size: int | None) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows())
    md5 = hashlib.md5(rows(), usedforsecurity=False).hexdigest()
    of_path = service.client.uploads.upload_file_chunked(
        file=path, mime_type="text/jsonl", purpose="fine-tune", part_size=part_size, md5=md5.upper()
    )
    of_bytes = service.client.uploads.upload_file_chunked(
        file=rows(), filename="b", bytes=len(rows()), mime_type="text/jsonl", purpose="fine-tune", part_size=part_size
    )

    assert of_path.filename == "rows.jsonl"
    assert content(service, of_path) == content(service, of_bytes) == rows()


def test_parts_that_come_all_at_once_are_all_kept(service: Service, http_server: HttpServer) -> None:
    pieces = [bytes([number]) * (1000 + number) for number in range(20)]
    whole = b"".join(pieces)
    body: dict[str, Any] = BODY | {"bytes": len(whole)}

    async def send() -> Upload:
        async with AsyncOpenAI(base_url=f"{http_server.origin}/v1", api_key=KEY, max_retries=0) as client:
            upload = await client.uploads.create(**body)
            calls = (client.uploads.parts.create(upload.id, data=piece) for piece in reversed(pieces))
            parts = await asyncio.gather(*calls)
            return await client.uploads.complete(
                upload.id,
                part_ids=[part.id for part in reversed(parts)],
                md5=hashlib.md5(whole, usedforsecurity=False).hexdigest(),
            )

    assert content(service, asyncio.run(send())) == whole


def test_a_part_may_be_larger_than_other_bodies(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "MAX_BODY_BYTES", 1000)
    upload = create(service, 5000)

    assert add(service, upload, b"x" * 5000)


def test_a_part_may_have_64_mib_and_no_byte_more_and_memory_grows_with_neither_part_nor_file(
    service: Service, tmp_path: Path
) -> None:
    path = tmp_path / "part"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    upload = create(service, 2 * 64 * MIB)
    add(service, upload, b"what is imported at first")
    tracemalloc.start()
    try:
        parts: list[str] = []
        for _ in range(2):
            with path.open("rb") as file:
                parts.append(service.http.post(f"/v1/uploads/{upload.id}/parts", files={"data": file}).json()["id"])
        done = service.client.uploads.complete(upload.id, part_ids=parts)
        with path.open("rb+") as file:
            file.truncate(64 * MIB + 1)
            refused = service.http.post(f"/v1/uploads/{create(service).id}/parts", files={"data": file})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert done.file is not None
    assert done.file.bytes == 2 * 64 * MIB
    assert refused.status_code == 413
    assert (error_of(refused)["param"], error_of(refused)["code"]) == ("data", "file_too_large")
    assert peak < 24 * MIB


# What is refused.


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"bytes": -1}, "bytes", "integer_below_min_value"),
        ({"bytes": 8 * 2**30 + 1}, "bytes", "integer_above_max_value"),
        ({"bytes": 10**300}, "bytes", "integer_above_max_value"),
        ({"bytes": "6"}, "bytes", "invalid_type"),
        ({"bytes": 6.5}, "bytes", "invalid_type"),
        ({"bytes": True}, "bytes", "invalid_type"),
        ({"bytes": None}, "bytes", "missing_required_parameter"),
        ({"purpose": "fun"}, "purpose", "invalid_value"),
        ({"purpose": "fine-tune-results"}, "purpose", "invalid_value"),
        ({"filename": ""}, "filename", "string_below_min_length"),
        ({"filename": "a" * 1025}, "filename", "string_above_max_length"),
        ({"filename": "\ud800"}, "filename", "invalid_value"),
        ({"mime_type": 7}, "mime_type", "invalid_type"),
        ({"expires_after": {"anchor": "created_at"}}, "expires_after.seconds", "missing_required_parameter"),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor", "invalid_value"),
        (
            {"expires_after": {"anchor": "created_at", "seconds": 3599}},
            "expires_after.seconds",
            "integer_below_min_value",
        ),
        ({"more": 1}, "more", "unknown_parameter"),
    ],
)
def test_a_faulty_upload_is_refused_naming_the_field(
    idle_service: Service, change: dict[str, Any], param: str, code: str
) -> None:
    answer = idle_service.http.post(
        "/v1/uploads", content=json.dumps(BODY | change), headers={"content-type": "application/json"}
    )

    assert answer.status_code == 400
    assert (error_of(answer)["param"], error_of(answer)["code"]) == (param, code)


def test_a_number_that_no_parser_takes_is_refused_as_well(idle_service: Service) -> None:
    body = json.dumps(BODY).replace('"bytes": 6', f'"bytes": {"9" * 10_000}')
    answer = idle_service.http.post("/v1/uploads", content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert len(error_of(answer)["message"]) < 1000


def test_an_upload_of_just_the_largest_size_is_taken(idle_service: Service) -> None:
    assert create(idle_service, 8 * 2**30).bytes == 8 * 2**30


FORM = b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\nabc\r\n'


@pytest.mark.parametrize(
    ("body", "content_type", "message", "param"),
    [
        (FORM, "multipart/form-data; boundary=b", "The form broke off before its end.", None),
        (FORM[:-5], "multipart/form-data; boundary=b", "The form broke off before its end.", None),
        (b"", "multipart/form-data; boundary=b", "The form broke off before its end.", None),
        (FORM + b"--b--\r\n", "multipart/form-data; boundary=other", "The form cannot be read", None),
        (FORM + b"--b--\r\n", "multipart/form-data", "Send a form", None),
        (b'{"data": "abc"}', "application/json", "Send a form", None),
        (FORM + FORM + b"--b--\r\n", "multipart/form-data; boundary=b", "The form has more than one 'data'.", "data"),
        (FORM.replace(b"abc", b"") + b"--b--", "multipart/form-data; boundary=b", "The data is empty.", "data"),
        (
            FORM.replace(b'data"', b'file"') + b"--b--",
            "multipart/form-data; boundary=b",
            "Missing required parameter: 'data'.",
            "data",
        ),
        (
            FORM.replace(b'data"', b'more"') + FORM + b"--b--",
            "multipart/form-data; boundary=b",
            "Unknown parameter: 'more'.",
            "more",
        ),
    ],
)
def test_a_faulty_part_is_refused_and_leaves_nothing(
    service: Service, body: bytes, content_type: str, message: str, param: str | None
) -> None:
    upload = create(service)
    answer = service.http.post(f"/v1/uploads/{upload.id}/parts", content=body, headers={"content-type": content_type})

    assert answer.status_code == 400
    assert error_of(answer)["message"].startswith(message)
    assert error_of(answer)["param"] == param
    assert service.blobs() == []
    assert is_pending(service, upload)


def test_a_connection_that_breaks_within_a_part_leaves_nothing(service: Service, http_server: HttpServer) -> None:
    upload = create(service)
    address = urlsplit(http_server.origin)
    head = (
        f"POST /v1/uploads/{upload.id}/parts HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {KEY}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 50000\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + FORM)
        wait_until(lambda: service.blobs() != [], "the part has begun")
    wait_until(lambda: service.blobs() == [], "the part was given up")

    assert service.store.uploads.list_parts(upload.id) == []


@pytest.mark.parametrize(
    ("named", "md5", "message", "param"),
    [
        (["first", "second", "part_none"], None, "has no part 'part_none'", "part_ids"),
        (["first", "another's"], None, "has no part", "part_ids"),
        (["first", "first"], None, "named twice", "part_ids"),
        (["first"], None, "The parts have 3 bytes together, but", "part_ids"),
        ([], None, "array too short", "part_ids"),
        (["first", "second", 7], None, "expected a string", "part_ids[2]"),
        (["first", "second"], "0" * 32, "The file's MD5 is e80b5017098950fc58aad83c8c14978e, not 000", "md5"),
        (["first", "second"], "0" * 31, "32 hexadecimal digits", "md5"),
        (["first", "second"], "é" * 32, "32 hexadecimal digits", "md5"),
    ],
)
def test_a_faulty_completion_is_refused_and_the_upload_stays_pending(
    service: Service, named: list[Any], md5: str | None, message: str, param: str
) -> None:
    upload = create(service)
    mine, (other,) = add(service, upload, b"abc", b"def"), add(service, create(service), b"def")
    blobs = set(service.blobs())
    ids = {"first": mine[0], "second": mine[1], "another's": other}
    body = {"part_ids": [ids.get(name, name) for name in named], "md5": md5}
    answer = service.http.post(f"/v1/uploads/{upload.id}/complete", json=body)

    assert answer.status_code == 400
    assert message in error_of(answer)["message"]
    assert error_of(answer)["param"] == param
    assert set(service.blobs()) == blobs
    assert list(service.client.files.list()) == []
    assert content(service, service.client.uploads.complete(upload.id, part_ids=mine)) == b"abcdef"


@pytest.mark.parametrize("purpose", ["fine-tune", "batch"])
@pytest.mark.parametrize("size", [1, 10, 100_000])
def test_what_is_not_jsonl_is_refused_before_it_is_joined(service: Service, purpose: str, size: int) -> None:
    upload = create(service, 100_000, purpose)
    half = b"Hello\n" + b"x" * 49_994
    parts = add(service, upload, *(half[at : at + size] for at in range(0, 20 if size < 100 else 1, size)))
    parts += add(service, upload, half + half[20:] if size < 100 else half)
    blobs = set(service.blobs())
    answer = service.http.post(f"/v1/uploads/{upload.id}/complete", json={"part_ids": parts})

    assert answer.status_code == 400
    assert error_of(answer)["message"].startswith("Invalid file format.")
    assert (error_of(answer)["code"], error_of(answer)["param"]) == ("invalid_file_format", None)
    assert set(service.blobs()) == blobs
    assert is_pending(service, upload)


@pytest.mark.parametrize("what", ["parts", "complete", "cancel"])
@pytest.mark.parametrize("status", ["completed", "cancelled", "expired"])
def test_an_upload_that_is_over_is_left_as_it_is_and_its_client_is_told_not_to_try_again(
    service: Service, what: str, status: str, later: Callable[[float], None]
) -> None:
    upload = create(service)
    parts = add(service, upload, b"abcdef")
    if status == "completed":
        service.client.uploads.complete(upload.id, part_ids=parts)
    elif status == "cancelled":
        assert service.client.uploads.cancel(upload.id).status == "cancelled"
    else:
        later(3601)
    files, blobs = list(service.client.files.list()), set(service.blobs())
    answer = ask(service, what, upload.id, parts)

    assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
    error = error_of(answer)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_upload_state")
    assert upload.id in error["message"]
    assert f"'{status}'" in error["message"]
    assert all(file.id in error["message"] for file in files)
    assert list(service.client.files.list()) == files
    assert set(service.blobs()) == blobs


@pytest.mark.parametrize("what", ["parts", "complete", "cancel"])
def test_an_upload_that_there_is_none_of_or_that_is_another_projects_is_not_found(
    service: Service, what: str, foreign: OpenAI
) -> None:
    theirs = foreign.uploads.create(**BODY)
    parts = [foreign.uploads.parts.create(theirs.id, data=b"abcdef").id]
    blobs = set(service.blobs())
    for upload_id in ("upload_none", theirs.id):
        answer = ask(service, what, upload_id, parts)

        assert answer.status_code == 404
        assert error_of(answer) == {
            "message": f"No such Upload: '{upload_id}'",
            "type": "invalid_request_error",
            "param": "id",
            "code": None,
        }
    assert set(service.blobs()) == blobs
    done = foreign.uploads.complete(theirs.id, part_ids=parts)
    assert [file.id for file in foreign.files.list()] == [done.file.id if done.file else None]
    assert list(service.client.files.list()) == []


class TestLimits:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return Settings(data_dir=tmp_path, max_upload_bytes=10, max_file_bytes=3)

    def test_an_upload_has_a_limit_of_its_own(self, service: Service) -> None:
        with pytest.raises(openai.BadRequestError, match="Expected a value <= 10, but got 11 instead") as caught:
            create(service, 11)

        assert (caught.value.param, caught.value.code) == ("bytes", "integer_above_max_value")
        upload = create(service, 10)
        done = service.client.uploads.complete(upload.id, part_ids=add(service, upload, b"0123456789"))
        assert content(service, done) == b"0123456789"

    def test_the_parts_may_come_twice_and_no_more(self, service: Service) -> None:
        upload = create(service, 10)
        add(service, upload, b"01234", b"01234", b"56789", b"56789")
        blobs = set(service.blobs())
        with pytest.raises(openai.APIStatusError, match="more than 20 bytes together") as caught:
            add(service, upload, b"x")

        assert (caught.value.status_code, caught.value.code) == (413, "file_too_large")
        assert set(service.blobs()) == blobs
        assert is_pending(service, upload)

    def test_a_keys_limit_holds_for_uploads_too(self, service: Service, http_server: HttpServer) -> None:
        _, key = service.store.keys.create("small", organization="caesura", max_file_bytes=5)
        with (
            OpenAI(base_url=f"{http_server.origin}/v1", api_key=key, max_retries=0) as client,
            pytest.raises(openai.BadRequestError, match="Expected a value <= 5"),
        ):
            client.uploads.create(**BODY)
