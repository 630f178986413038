from __future__ import annotations

import base64
import re
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from caesura.api import files
from caesura.settings import Settings
from caesura.storage import LocalWriter
from tests.api.service import RESULTS, ROW, HttpServer, Service, assert_shape, build_service, error_of, rows

FILE = {
    "id": str,
    "object": str,
    "bytes": int,
    "created_at": int,
    "filename": str,
    "purpose": str,
    "status": str,
}


def test_an_uploaded_file_is_told_in_openais_form(service: Service) -> None:
    answer = service.http.post("/v1/files", files={"file": ("a.jsonl", rows())}, data={"purpose": "fine-tune"})

    file = answer.json()
    assert_shape(file, FILE)
    assert re.fullmatch(r"file-[A-Za-z0-9]{24}", file["id"])
    told = {key: file[key] for key in ("object", "bytes", "filename", "purpose", "status")}
    assert told == {
        "object": "file",
        "bytes": len(rows()),
        "filename": "a.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
    }


def test_a_file_reads_back_as_it_was_sent(service: Service) -> None:
    data = rows(3, {"messages": [], "text": "Füße 🦶 \u2028"})
    file_id = service.upload(data)

    assert service.client.files.content(file_id).content == data
    assert service.client.files.retrieve(file_id).bytes == len(data)
    assert service.client.files.wait_for_processing(file_id).status == "processed"


def test_a_path_and_bytes_without_a_name_are_taken_as_the_sdk_sends_them(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "from disk.jsonl"
    path.write_bytes(rows())

    assert service.client.files.create(file=path, purpose="fine-tune").filename == "from disk.jsonl"
    assert service.client.files.create(file=rows(), purpose="fine-tune").filename == "upload"


@pytest.mark.parametrize("name", ["Übung „eins“.jsonl", "訓練.jsonl", "a;b.jsonl", "..jsonl", "🐙" * 60])
def test_a_file_keeps_its_name_whatever_its_characters(service: Service, name: str) -> None:
    file_id = service.upload(name=name)

    assert service.client.files.retrieve(file_id).filename == name
    assert service.client.files.content(file_id).content == rows()


def test_the_name_of_a_download_cannot_leave_its_header(service: Service) -> None:
    file_id = service.upload(name='../a"b;c/d.jsonl')

    answer = service.http.get(f"/v1/files/{file_id}/content")
    assert re.fullmatch(r"attachment; filename\*=UTF-8''[\w.%-]+", answer.headers["content-disposition"])
    assert answer.headers["content-type"] == "application/octet-stream"


def test_the_newest_file_comes_first_unless_told_otherwise(service: Service) -> None:
    ids = [service.upload(name=f"{number}.jsonl") for number in range(3)]

    assert [file.id for file in service.client.files.list()] == ids[::-1]
    assert [file.id for file in service.client.files.list(order="asc")] == ids
    for order, expected in (("ascending", ids), ("descending", ids[::-1])):
        listed = service.http.get("/v1/files", params={"order": order}).json()["data"]
        assert [file["id"] for file in listed] == expected


def test_a_page_of_files_has_its_ends_ids(service: Service) -> None:
    empty = service.http.get("/v1/files").json()
    ids = [service.upload() for _ in range(3)]
    page = service.http.get("/v1/files", params={"limit": 2}).json()

    assert empty == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
    assert_shape(page, {"object": str, "data": [FILE], "has_more": bool, "first_id": str, "last_id": str})
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, ids[2], ids[1])


def test_pages_of_one_hold_every_file_once(service: Service) -> None:
    ids = [service.upload() for _ in range(3)]

    assert [file.id for file in service.client.files.list(limit=1)] == ids[::-1]


def test_files_can_be_deleted_while_they_are_listed(service: Service) -> None:
    for _ in range(3):
        service.upload()
    for file in service.client.files.list(limit=1):
        service.client.files.delete(file.id)

    assert list(service.client.files.list()) == []


def test_files_are_listed_by_purpose(service: Service) -> None:
    service.upload()
    evals = service.upload(b"anything", purpose="evals")

    assert [file.id for file in service.client.files.list(purpose="evals")] == [evals]
    assert list(service.client.files.list(purpose="batch")) == []


def test_an_empty_value_in_the_query_means_none(service: Service) -> None:
    """The SDK for JavaScript sends null so."""
    file_id = service.upload()

    listed = service.http.get("/v1/files?after=&purpose=").json()
    assert [file["id"] for file in listed["data"]] == [file_id]


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("after=file-none", "after", None),
        ("limit=0", "limit", "integer_below_min_value"),
        ("limit=10001", "limit", "integer_above_max_value"),
        ("limit=many", "limit", "invalid_type"),
        ("limit=1.5", "limit", "invalid_type"),
        ("order=up", "order", "invalid_value"),
    ],
)
def test_a_bad_query_names_its_parameter(idle_service: Service, query: str, param: str, code: str | None) -> None:
    answer = idle_service.http.get(f"/v1/files?{query}")

    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["param"], error["code"]) == (param, code)


def test_a_file_that_expires_says_when(service: Service) -> None:
    file = service.client.files.create(
        file=("a.txt", b"a"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )

    assert file.expires_at == file.created_at + 3600
    assert service.client.files.retrieve(file.id) == file
    assert_shape(service.http.get(f"/v1/files/{file.id}").json(), {**FILE, "expires_at": int})


def test_a_file_for_a_batch_expires_after_30_days_unless_told_otherwise(service: Service) -> None:
    of_itself = service.client.files.retrieve(service.upload(purpose="batch"))
    told = service.client.files.create(
        file=("a.jsonl", rows()), purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200}
    )

    assert of_itself.expires_at == of_itself.created_at + 30 * 86_400
    assert told.expires_at == told.created_at + 7200


@pytest.mark.parametrize(
    "fields",
    [
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592000"},
        {"expires_after": '{"anchor": "created_at", "seconds": 2592000}'},
    ],
)
def test_when_a_file_expires_may_come_in_fields_or_in_json(service: Service, fields: dict[str, str]) -> None:
    data = {"purpose": "user_data", **fields}
    file = service.http.post("/v1/files", files={"file": b"a"}, data=data).json()

    assert file["expires_at"] - file["created_at"] == 2_592_000


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"expires_after[seconds]": "3600"}, "expires_after.anchor", "missing_required_parameter"),
        ({"expires_after[anchor]": "created_at"}, "expires_after.seconds", "missing_required_parameter"),
        (
            {"expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after.anchor",
            "invalid_value",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"},
            "expires_after.seconds",
            "integer_below_min_value",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"},
            "expires_after.seconds",
            "integer_above_max_value",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "9" * 60_000},
            "expires_after.seconds",
            "invalid_type",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "soon"},
            "expires_after.seconds",
            "invalid_type",
        ),
        ({"expires_after[days]": "1"}, "expires_after.anchor", "missing_required_parameter"),
        ({"expires_after": "tomorrow"}, "expires_after", "invalid_type"),
        ({"expires_after": ""}, "expires_after", "invalid_type"),
        ({"expires_after": "[" * 60_000}, "expires_after", "invalid_type"),
        ({"expires_after": "[1]"}, "expires_after", "invalid_type"),
        ({"expires_after": "{}", "expires_after[seconds]": "3600"}, "expires_after", None),
        ({"expires_after[": "1"}, "expires_after[", "unknown_parameter"),
    ],
)
def test_a_faulty_expiry_is_refused_and_leaves_nothing(
    service: Service, fields: dict[str, str], param: str, code: str | None
) -> None:
    answer = service.http.post("/v1/files", files={"file": b"a"}, data={"purpose": "user_data", **fields})

    assert answer.status_code == 400
    assert (error_of(answer)["param"], error_of(answer)["code"]) == (param, code)
    assert service.blobs() == []


def test_an_expired_file_is_gone(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = service.client.files.create(
        file=("a.jsonl", rows()), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    ).id
    in_time = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: in_time)

    assert list(service.client.files.list()) == []
    for ask in (service.client.files.retrieve, service.client.files.content, service.client.files.delete):
        with pytest.raises(openai.NotFoundError, match=f"No such File object: {file_id}"):
            ask(file_id)
    with pytest.raises(openai.BadRequestError, match=f"invalid training_file: {file_id}"):
        service.create_job(training_file=file_id)


def test_files_of_other_projects_do_not_exist(service: Service, http_server: HttpServer) -> None:
    file_id = service.upload()
    _, key = service.store.keys.create("theirs", organization="caesura", project="other")
    with OpenAI(base_url=f"{http_server.origin}/v1", api_key=key, max_retries=0) as theirs:
        assert list(theirs.files.list()) == []
        for ask in (theirs.files.retrieve, theirs.files.content, theirs.files.delete):
            with pytest.raises(openai.NotFoundError, match=file_id):
                ask(file_id)


def test_memory_does_not_grow_with_a_file(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    service.upload()
    tracemalloc.start()
    try:
        with path.open("rb") as file:
            answer = service.http.post("/v1/files", files={"file": file}, data={"purpose": "user_data"})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert answer.json()["bytes"] == 100 * 2**20
    assert peak < 16 * 2**20


def test_a_deleted_file_is_gone(service: Service) -> None:
    file_id = service.upload()
    answer = service.http.delete(f"/v1/files/{file_id}")

    assert answer.json() == {"id": file_id, "object": "file", "deleted": True}
    for ask in (service.client.files.retrieve, service.client.files.content, service.client.files.delete):
        with pytest.raises(openai.NotFoundError, match=f"No such File object: {file_id}") as caught:
            ask(file_id)
        assert (caught.value.param, caught.value.code) == ("id", None)


def test_a_job_keeps_a_file_that_is_deleted(service: Service) -> None:
    file_id = service.upload()
    job_id = service.create_job(training_file=file_id)
    service.client.files.delete(file_id)
    service.validate()

    job = service.client.fine_tuning.jobs.retrieve(job_id)
    assert (job.status, job.training_file) == ("queued", file_id)


@pytest.mark.parametrize("purpose", ["fine-tune", "batch"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"Hello\n",
            "Invalid file format. Expected file to have JSONL format, where every line is a JSON dictionary. "
            'Line 1 is not a dictionary (HINT: line starts with: "Hello…").',
        ),
        (
            b'\n[{"messages": []}]\n',
            "Invalid file format. Expected file to have JSONL format, where every line is a JSON dictionary. "
            'Line 2 is not a dictionary (HINT: line starts with: "[{"messages": []}]…").',
        ),
    ],
)
def test_what_is_not_jsonl_is_refused_at_upload_naming_the_line(
    service: Service, data: bytes, message: str, purpose: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        service.upload(data, purpose=purpose)

    assert caught.value.body == {
        "message": message,
        "type": "invalid_request_error",
        "param": "file",
        "code": "invalid_file_format",
    }
    assert service.blobs() == []


def test_files_that_need_not_be_jsonl_are_not_looked_into(service: Service) -> None:
    file_id = service.upload(b"\x00\xff anything", name="a.bin", purpose="user_data")

    assert service.client.files.content(file_id).content == b"\x00\xff anything"


def test_a_result_file_comes_in_base64_unless_csv_is_asked_for(service: Service) -> None:
    job, lease = service.start_job()
    service.finish(lease, 1)
    (file_id,) = service.client.fine_tuning.jobs.retrieve(job.id).result_files

    assert base64.b64decode(service.client.files.content(file_id).read()) == RESULTS
    plain = service.http.get(f"/v1/files/{file_id}/content", headers={"accept": "text/csv"})
    assert plain.content == RESULTS
    assert service.client.files.retrieve(file_id).purpose == "fine-tune-results"
    assert service.client.files.retrieve(file_id).bytes == len(RESULTS)


def test_a_setting_turns_base64_off(
    settings: Settings, http_server: HttpServer, client: OpenAI, service: Service
) -> None:
    plain = build_service(settings.model_copy(update={"results_base64": False}), http_server, client, service.http)
    job, lease = plain.start_job()
    plain.finish(lease, 1)

    assert client.files.content(plain.store.jobs.get(job.id).result_files[0]).read() == RESULTS
    plain.close()


@pytest.mark.parametrize("num_bytes", [1, 2, 3, 4, 100])
def test_pieces_of_base64_join(service: Service, num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.CHUNK_BYTES % 3 == 0
    monkeypatch.setattr(files, "CHUNK_BYTES", 3)
    data = bytes(range(num_bytes))
    monkeypatch.setattr("tests.api.service.RESULTS", data)
    job, lease = service.start_job()
    service.finish(lease, 1)

    answer = service.client.files.content(service.store.jobs.get(job.id).result_files[0])
    assert answer.read() == base64.b64encode(data)


def test_a_lost_blob_is_an_error_and_not_half_an_answer(service: Service) -> None:
    file_id = service.upload()
    service.server.storage.delete(service.store.files.get(file_id).blob)

    with pytest.raises(openai.InternalServerError) as caught:
        service.client.files.content(file_id)
    assert "blob" not in caught.value.message


def test_an_upload_under_way_hinders_nobody_and_is_not_listed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is held at its end, where it syncs."""
    syncing, may_end = threading.Event(), threading.Event()
    leave = LocalWriter.__exit__

    def leave_late(writer: LocalWriter, *fault: object) -> None:
        syncing.set()
        assert may_end.wait(30)
        leave(writer, *fault)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalWriter, "__exit__", leave_late)
    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(service.upload)
        assert syncing.wait(30)
        listed = list(service.client.files.list())
        may_end.set()

    assert listed == []
    assert [file.id for file in service.client.files.list()] == [upload.result()]


def test_many_uploads_at_once_are_all_kept_whole(service: Service) -> None:
    contents = [rows(10 + number, {**ROW, "number": number}) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(service.upload, contents))

    assert {file.id for file in service.client.files.list()} == set(ids)
    assert [service.client.files.content(file_id).content for file_id in ids] == contents
