from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from caesura import errors
from caesura.api import front
from caesura.api.errors import answer_error, error_body
from caesura.errors import (
    BlobDamaged,
    CaesuraError,
    EngineUnavailable,
    Forbidden,
    InvalidJobState,
    InvalidRequest,
    NotFound,
    TooLarge,
)
from caesura.store.files import Files
from tests.api.service import HttpServer, Service, error_of

GENERAL = "The server had an error while processing your request. See its log for the request's id."


def every_error() -> list[type[CaesuraError]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, CaesuraError)]


@pytest.mark.parametrize("kind", every_error())
def test_every_error_has_a_sentence_and_all_four_keys(kind: type[CaesuraError]) -> None:
    body = error_body(kind())

    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"].rstrip().endswith((".", "'"))
    assert kind.status != 422
    assert kind.status != 409


def test_what_is_our_own_fault_is_told_in_general_words() -> None:
    told = error_body(BlobDamaged("The stored file '/home/me/adapter' does not match its checksum."))

    assert told["error"] == {"message": GENERAL, "type": "server_error", "param": None, "code": None}


@pytest.mark.parametrize(
    ("fault", "headers"),
    [
        (InvalidJobState(), {"x-should-retry": "false"}),
        (EngineUnavailable(), {"retry-after": "2"}),
        (InvalidRequest(), {}),
    ],
)
def test_the_headers_say_whether_a_retry_helps(fault: CaesuraError, headers: dict[str, str]) -> None:
    answer = answer_error(fault)

    told = {name: answer.headers[name] for name in ("x-should-retry", "retry-after") if name in answer.headers}
    assert (answer.status_code, told) == (fault.status, headers)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (InvalidRequest("Füße \ud800"), openai.BadRequestError),
        (Forbidden(), openai.PermissionDeniedError),
        (NotFound(), openai.NotFoundError),
        (TooLarge(), openai.APIStatusError),
        (EngineUnavailable(), openai.InternalServerError),
        (RuntimeError("/secret/path"), openai.InternalServerError),
        (BlobDamaged("/secret/path"), openai.InternalServerError),
    ],
)
def test_each_error_arrives_as_its_class_of_the_sdk(
    idle_service: Service, monkeypatch: pytest.MonkeyPatch, fault: Exception, kind: type[openai.APIStatusError]
) -> None:
    def break_down(_files: Files, _file_id: str) -> None:
        raise fault

    monkeypatch.setattr(Files, "get", break_down)
    with pytest.raises(kind) as caught:
        idle_service.client.files.retrieve("file-1")

    assert caught.value.status_code == getattr(fault, "status", 500)
    assert error_of(caught.value.response)["message"]
    assert caught.value.request_id is not None
    assert "secret" not in caught.value.response.text


def test_an_unforeseen_fault_is_answered_in_general_words_and_logged_under_the_requests_id(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise RuntimeError(f"broken: {Path(__file__)}")

    monkeypatch.setattr(Files, "list", break_down)
    with caplog.at_level(logging.ERROR, logger="caesura"):
        answer = service.http.get("/v1/files")

    assert answer.status_code == 500
    assert error_of(answer) == {"message": GENERAL, "type": "server_error", "param": None, "code": None}
    (record,) = caplog.records
    assert answer.headers["x-request-id"] in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)


def test_a_fault_that_has_a_name_is_logged_under_the_requests_id_too(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(_files: Files, _file_id: str) -> None:
        raise BlobDamaged("The stored blob 'files/x' is missing.")

    monkeypatch.setattr(Files, "get", break_down)
    with caplog.at_level(logging.ERROR, logger="caesura"):
        answer = service.http.get("/v1/files/file-1")

    assert [answer.headers["x-request-id"] in record.getMessage() for record in caplog.records] == [True]
    assert "The stored blob 'files/x' is missing." in caplog.text


@pytest.mark.parametrize("path", ["/v1", "/v1/foo", "/assets", "/v1/files/a/b/c", "/v1/Füße", "/docs", "/openapi.json"])
def test_an_unknown_url_is_told_in_openais_words(idle_service: Service, path: str) -> None:
    answer = idle_service.http.get(path)

    assert answer.status_code == 404
    assert error_of(answer) == {
        "message": f"Invalid URL (GET {path.rstrip('/') or '/'})",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_a_method_that_a_url_does_not_take_is_told_with_those_it_does(idle_service: Service) -> None:
    answer = idle_service.http.put("/v1/fine_tuning/jobs/ftjob-1")

    assert answer.status_code == 405
    assert error_of(answer)["code"] == "method_not_supported"
    assert error_of(answer)["message"].startswith("Not allowed to PUT on /v1/fine_tuning/jobs/ftjob-1.")
    assert answer.headers["allow"] == "GET"


def test_a_host_header_that_makes_no_sense_changes_nothing(idle_service: Service) -> None:
    answer = idle_service.http.get("/v1/foo", headers={"host": "["})

    assert (answer.status_code, error_of(answer)["message"]) == (404, "Invalid URL (GET /v1/foo)")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"3",
        b"true",
        b"{",
        b"{'model': 'x'}",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda content: content[:12].decode("latin-1"),
)
@pytest.mark.parametrize("path", ["/v1/fine_tuning/jobs", "/v1/chat/completions"])
def test_a_body_that_is_no_json_object_is_a_400(idle_service: Service, path: str, content: bytes) -> None:
    answer = idle_service.http.post(path, content=content, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert error_of(answer)["param"] is None


def test_json_that_cannot_be_parsed_is_told_with_the_parsers_hint(idle_service: Service) -> None:
    headers = {"content-type": "application/json"}
    answer = idle_service.http.post("/v1/fine_tuning/jobs", content=b'{"model": }', headers=headers)

    message = error_of(answer)["message"]
    assert message.startswith("We could not parse the JSON body of your request.")
    assert "Expecting value" in message


def test_a_body_that_is_not_sent_as_json_is_told_which_type_to_send(idle_service: Service) -> None:
    answer = idle_service.http.post("/v1/fine_tuning/jobs", data={"model": "caesura-tiny"})

    assert answer.status_code == 400
    assert "application/json" in error_of(answer)["message"]


def test_a_body_that_is_too_large_is_refused_before_it_is_read_whole(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "MAX_BODY_BYTES", 100_000)
    answer = service.http.post("/v1/chat/completions", json={"model": "x" * 20_000_000})

    assert answer.status_code == 413
    size = re.fullmatch(
        r"Maximum content size limit \(100000\) exceeded \((\d+) bytes read\)", error_of(answer)["message"]
    )
    assert size is not None
    assert int(size[1]) < 1_000_000


def test_what_a_message_quotes_is_cut(service: Service) -> None:
    long, good = "x" * 1_000_000, {"model": "caesura-tiny", "training_file": service.upload()}
    faults: list[dict[str, Any]] = [
        {long: 1},
        {"method": {"type": long}},
        {"seed": 10**4000},
        {"model": long},
        {"training_file": long},
    ]
    answers = [service.http.post("/v1/fine_tuning/jobs", json=good | fault) for fault in faults]
    chat = {"model": long, "messages": [{"role": "user", "content": "Hi"}]}
    answers.append(service.http.post("/v1/chat/completions", json=chat))

    assert [answer.status_code for answer in answers] == [400, 400, 400, 400, 400, 404]
    assert max(len(answer.content) for answer in answers) < 1000


@pytest.mark.parametrize(
    "body",
    [
        {"\ud800": 1},
        {"method": {"type": "\ud800"}},
        {"model": "\ud800"},
        {"training_file": "\ud800"},
        {"validation_file": "\ud800"},
        {"metadata": {"\ud800": "v"}},
        {"metadata": {"k": "\ud800"}},
        {"suffix": "\ud800"},
    ],
)
def test_half_a_surrogate_pair_is_a_400(service: Service, body: dict[str, Any]) -> None:
    good = {"model": "caesura-tiny", "training_file": service.upload()}
    content = json.dumps(good | body, ensure_ascii=True)
    answer = service.http.post("/v1/fine_tuning/jobs", content=content, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert error_of(answer)["message"]


def test_characters_of_any_language_stand_in_a_message_as_they_are(idle_service: Service) -> None:
    answer = idle_service.http.get("/v1/fine_tuning/jobs/ftjob-Füße🦶")

    assert "Could not find fine tune: ftjob-Füße🦶" in answer.content.decode()


def test_the_sdk_retries_a_server_that_is_busy_and_not_a_wrong_status(
    service: Service, monkeypatch: pytest.MonkeyPatch, http_server: HttpServer
) -> None:
    job_id = service.create_job()
    service.client.fine_tuning.jobs.cancel(job_id)
    with OpenAI(base_url=f"{http_server.origin}/v1", api_key=service.client.api_key, max_retries=1) as patient:
        faults: list[CaesuraError] = []

        def break_down(_files: Files, _file_id: str) -> None:
            faults.append(EngineUnavailable())
            raise faults[-1]

        monkeypatch.setattr(EngineUnavailable, "retry_after_s", 0)
        monkeypatch.setattr(Files, "get", break_down)
        with pytest.raises(openai.InternalServerError):
            patient.files.retrieve("file-1")
        with pytest.raises(openai.BadRequestError) as caught:
            patient.fine_tuning.jobs.cancel(job_id)

    assert len(faults) == 2
    assert caught.value.request.headers["x-stainless-retry-count"] == "0"
