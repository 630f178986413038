from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from caesura.errors import InvalidUploadState, NotFound, TooLarge
from caesura.storage import Blob
from caesura.store import Store, uploads
from caesura.store.uploads import JOIN_GRACE_S, UPLOAD_LIFE_S, Upload, UploadPart, UploadStatus

JOINED = Blob("files/joined", 6, "00")


def create(store: Store, file_life_s: int | None = None) -> Upload:
    return store.uploads.create(6, "a.jsonl", "evals", "text/jsonl", file_life_s)


def add(store: Store, upload: Upload, name: str, num_bytes: int = 3) -> UploadPart:
    return store.uploads.add_part(upload.id, Blob(f"parts/{name}", num_bytes, "00"), 100)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts the clock forward, by seconds."""
    real = time.time
    return lambda seconds: monkeypatch.setattr(time, "time", lambda: real() + seconds)


def test_an_upload_and_its_parts_read_back_as_they_were_made(store: Store) -> None:
    upload = create(store)
    parts = [add(store, upload, name) for name in "ab"]

    assert store.uploads.get_pending(upload.id) == upload
    assert (upload.status, upload.bytes, upload.mime_type) == (UploadStatus.PENDING, 6, "text/jsonl")
    assert upload.expires_at == upload.created_at + UPLOAD_LIFE_S
    assert store.uploads.list_parts(upload.id) == parts


def test_a_completed_upload_has_its_file_from_the_same_moment(store: Store) -> None:
    upload = create(store, file_life_s=3600)
    add(store, upload, "a", 6)
    completed, file = store.uploads.complete(upload.id, JOINED)

    assert (completed.id, completed.status) == (upload.id, UploadStatus.COMPLETED)
    assert store.files.get(file.id) == file
    assert (file.filename, file.purpose, file.blob, file.bytes) == ("a.jsonl", "evals", "files/joined", 6)
    assert file.expires_at == file.created_at + 3600


def test_a_completion_that_breaks_off_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = create(store)
    part = add(store, upload, "a", 6)

    def fail(*_: object) -> None:
        raise RuntimeError("in the midst of it")

    monkeypatch.setattr(uploads, "new_file", fail)
    with pytest.raises(RuntimeError):
        store.uploads.complete(upload.id, JOINED)

    assert store.uploads.get_pending(upload.id) == upload
    assert store.uploads.list_parts(upload.id) == [part]


def test_of_two_servers_that_complete_an_upload_at_once_one_does(store: Store, open_again: Callable[[], Store]) -> None:
    other = open_again()
    for _ in range(5):
        upload = create(store)
        both = Barrier(2)

        def complete(store: Store, upload: Upload = upload, both: Barrier = both) -> str | None:
            both.wait(30)
            try:
                return store.uploads.complete(upload.id, JOINED)[1].id
            except InvalidUploadState:
                return None

        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(complete, [store, other]))
        assert done.count(None) == 1
    files, _ = store.files.list(purpose=None, after=None, limit=100, descending=True)
    assert len(files) == 5
    other.close()


@pytest.mark.parametrize("end", ["complete", "cancel", "expire"])
def test_an_upload_that_is_over_takes_nothing_and_says_how_it_ended(
    store: Store, end: str, later: Callable[[float], None]
) -> None:
    upload = create(store)
    add(store, upload, "a")
    if end == "complete":
        store.uploads.complete(upload.id, JOINED)
    elif end == "cancel":
        store.uploads.cancel(upload.id)
    else:
        later(UPLOAD_LIFE_S)
    status = {"complete": "completed", "cancel": "cancelled", "expire": "expired"}[end]
    for ask in (
        lambda: store.uploads.get_pending(upload.id),
        lambda: add(store, upload, "b"),
        lambda: store.uploads.cancel(upload.id),
    ):
        with pytest.raises(InvalidUploadState, match=f"'{status}'"):
            ask()


def test_a_pending_uploads_parts_are_referenced_until_it_is_over(store: Store, later: Callable[[float], None]) -> None:
    completed, cancelled, expired = (create(store) for _ in range(3))
    for upload in (completed, cancelled, expired):
        add(store, upload, f"{upload.id}-a")
        add(store, upload, f"{upload.id}-b")
    of_expired = {f"parts/{expired.id}-{name}" for name in "ab"}
    assert len(store.recovery.referenced_blobs()) == 6

    store.uploads.complete(completed.id, JOINED)
    store.uploads.cancel(cancelled.id)
    store.uploads.expire()
    assert store.recovery.referenced_blobs() == {"files/joined"} | of_expired

    later(UPLOAD_LIFE_S + JOIN_GRACE_S - 5)  # one that began in time may still be joining them
    store.uploads.expire()
    assert store.recovery.referenced_blobs() == {"files/joined"} | of_expired

    later(UPLOAD_LIFE_S + JOIN_GRACE_S)
    store.uploads.expire()
    assert store.recovery.referenced_blobs() == {"files/joined"}
    with pytest.raises(InvalidUploadState, match="'expired'"):
        store.uploads.complete(expired.id, JOINED)


def test_the_parts_have_a_limit_together(store: Store) -> None:
    upload = create(store)
    add(store, upload, "a", 60)
    add(store, upload, "b", 40)
    with pytest.raises(TooLarge, match="more than 100 bytes together"):
        add(store, upload, "c", 1)

    assert len(store.uploads.list_parts(upload.id)) == 2


def test_an_upload_exists_in_its_project_only(store: Store) -> None:
    ours, theirs = store.of("proj_ours"), store.of("proj_theirs")
    upload = create(ours)
    add(ours, upload, "a", 6)

    assert theirs.uploads.list_parts(upload.id) == []
    for ask in (
        lambda: theirs.uploads.get_pending(upload.id),
        lambda: add(theirs, upload, "b"),
        lambda: theirs.uploads.complete(upload.id, JOINED),
        lambda: theirs.uploads.cancel(upload.id),
    ):
        with pytest.raises(NotFound, match=upload.id):
            ask()
    _, file = store.uploads.complete(upload.id, JOINED)
    assert ours.files.get(file.id) == file
    with pytest.raises(NotFound):
        theirs.files.get(file.id)
