"""Uploads that several end at once, that end while they are asked for something, or that something breaks under."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from caesura.api import uploads
from caesura.errors import DatabaseUnavailable, StorageUnavailable
from caesura.settings import Settings
from caesura.storage import LocalWriter
from caesura.store.uploads import Uploads
from tests.api.service import Service, error_of
from tests.api.uploading import add, ask, content, create


@pytest.fixture
def held_join(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """(a whole file is written, but not there yet; it may be)"""
    written, may_end = threading.Event(), threading.Event()
    leave = LocalWriter.__exit__

    def leave_late(writer: LocalWriter, *fault: object) -> None:
        if writer.blob.key.startswith("files/"):
            written.set()
            assert may_end.wait(30)
        leave(writer, *fault)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalWriter, "__exit__", leave_late)
    return written, may_end


def test_of_two_completions_at_once_one_wins(
    service: Service, held_join: tuple[threading.Event, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the other writes nothing; meanwhile the server answers others."""
    written, may_end = held_join
    upload = create(service)
    parts = add(service, upload, b"abcdef")
    both_are_here = threading.Event()
    waiting: list[object] = []

    class Locks(dict[str, asyncio.Lock]):
        def setdefault(self, key: str, default: Any = None) -> Any:
            waiting.append(key)
            if len(waiting) == 2:
                both_are_here.set()
            return super().setdefault(key, default)

    monkeypatch.setattr(uploads, "_joining", Locks())
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ask, service, "complete", upload.id, parts) for _ in range(2)]
        assert written.wait(30)
        assert both_are_here.wait(30)
        assert list(service.client.files.list()) == []
        may_end.set()
        answers = sorted((call.result() for call in calls), key=lambda answer: answer.status_code)

    assert [answer.status_code for answer in answers] == [200, 400]
    assert error_of(answers[1])["code"] == "invalid_upload_state"
    assert [file.id for file in service.client.files.list()] == [answers[0].json()["file"]["id"]]
    assert len([key for key in service.blobs() if key.startswith("files/")]) == 1


@pytest.mark.parametrize("end", ["complete", "cancel"])
def test_an_upload_that_another_server_ends_meanwhile_is_not_completed(
    service: Service, held_join: tuple[threading.Event, threading.Event], end: str
) -> None:
    written, may_end = held_join
    upload = create(service)
    parts = add(service, upload, b"abcdef")
    other_blob = service.store.uploads.list_parts(upload.id)[0]
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(ask, service, "complete", upload.id, parts)
        assert written.wait(30)
        if end == "cancel":
            service.store.uploads.cancel(upload.id)
        else:
            service.store.uploads.complete(upload.id, uploads.Blob(other_blob.blob, 6, other_blob.sha256))
        may_end.set()

    assert (call.result().status_code, error_of(call.result())["code"]) == (400, "invalid_upload_state")
    assert len(list(service.client.files.list())) == (end == "complete")
    assert [key for key in service.blobs() if key.startswith("files/")] == []


def test_a_completion_that_began_in_time_ends_well(
    service: Service, held_join: tuple[threading.Event, threading.Event], later: Callable[[float], None]
) -> None:
    written, may_end = held_join
    upload = create(service)
    parts = add(service, upload, b"abcdef")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(ask, service, "complete", upload.id, parts)
        assert written.wait(30)
        later(3700)
        service.store.uploads.expire()
        may_end.set()

    assert call.result().json()["status"] == "completed"


def test_a_part_is_not_added_to_an_upload_that_ended_while_it_came(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = create(service)
    leave = LocalWriter.__exit__

    def cancel_before(writer: LocalWriter, *fault: object) -> None:
        leave(writer, *fault)  # type: ignore[arg-type]
        service.store.uploads.cancel(upload.id)

    monkeypatch.setattr(LocalWriter, "__exit__", cancel_before)
    with pytest.raises(openai.BadRequestError, match="'cancelled'"):
        add(service, upload, b"abc")

    assert service.blobs() == []


@pytest.mark.parametrize("step", ["storage", "database"])
def test_a_completion_that_breaks_leaves_no_file_and_can_be_asked_for_again(
    service: Service, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    upload = create(service)
    parts = add(service, upload, b"abc", b"def")

    def refuse(*_: object) -> None:
        raise StorageUnavailable if step == "storage" else DatabaseUnavailable

    if step == "storage":
        monkeypatch.setattr(LocalWriter, "write", refuse)
    else:
        monkeypatch.setattr(Uploads, "complete", refuse)
    answer = ask(service, "complete", upload.id, parts)
    monkeypatch.undo()

    assert answer.status_code == (507 if step == "storage" else 503)
    assert list(service.client.files.list()) == []
    referenced = service.store.recovery.referenced_blobs()
    assert referenced == {part.blob for part in service.store.uploads.list_parts(upload.id)}
    assert content(service, service.client.uploads.complete(upload.id, part_ids=parts)) == b"abcdef"


def test_a_part_whose_row_is_not_written_does_not_exist(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = create(service)

    def refuse(*_: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(Uploads, "add_part", refuse)
    assert ask(service, "parts", upload.id, []).status_code == 503
    monkeypatch.undo()

    assert service.store.uploads.list_parts(upload.id) == []
    assert service.store.recovery.referenced_blobs() == set()
    assert content(service, service.client.uploads.complete(upload.id, part_ids=add(service, upload, b"abcdef")))


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_a_damaged_part_is_never_joined(service: Service, settings: Settings, damage: str) -> None:
    upload = create(service)
    parts = add(service, upload, b"abc", b"def")
    path = settings.data_dir / "blobs" / service.store.uploads.list_parts(upload.id)[1].blob
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(b"deX")
    answer = ask(service, "complete", upload.id, parts)

    assert answer.status_code == 500
    assert path.name not in error_of(answer)["message"]
    assert list(service.client.files.list()) == []
    assert [key for key in service.blobs() if key.startswith("files/")] == []
