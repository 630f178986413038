from __future__ import annotations

import time

import pytest

from caesura.errors import InvalidRequest, NotFound
from caesura.jobs import File
from caesura.storage import Blob
from caesura.store import Store


def make_file(store: Store, number: int, purpose: str = "fine-tune") -> File:
    return store.files.create(Blob(f"files/{number}", number, "00"), f"{number}.jsonl", purpose)


def ids(files: list[File]) -> list[str]:
    return [file.id for file in files]


def test_a_file_reads_back_as_it_was_made(store: Store) -> None:
    file = make_file(store, 7)

    assert store.files.get(file.id) == file
    assert (file.bytes, file.filename, file.purpose) == (7, "7.jsonl", "fine-tune")


def test_a_file_whose_time_is_up_is_gone_and_its_blob_is_not_referenced_after_the_next_look(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting, short, long = (
        store.files.create(Blob(f"files/{life_s}", 1, "00"), "a", "evals", life_s) for life_s in (None, 3600, 7200)
    )
    assert (lasting.expires_at, short.expires_at) == (None, short.created_at + 3600)
    assert store.files.get(short.id) == short
    in_time = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: in_time)

    for ask in (store.files.get, store.files.delete):
        with pytest.raises(NotFound, match=short.id):
            ask(short.id)
    for after, expected in ((None, [long, lasting]), (short.id, [lasting]), (long.id, [lasting])):
        files, _ = store.files.list(purpose=None, after=after, limit=9, descending=True)
        assert ids(files) == ids(expected)
    store.files.expire()
    assert store.recovery.referenced_blobs() == {"files/None", "files/7200"}
    assert store.files.get(long.id) == long


def test_a_deleted_file_is_gone_and_cannot_be_deleted_again(store: Store) -> None:
    file = make_file(store, 1)
    store.files.delete(file.id)

    with pytest.raises(NotFound, match=file.id):
        store.files.get(file.id)
    with pytest.raises(NotFound, match=file.id):
        store.files.delete(file.id)


def test_deleting_while_paging_misses_nothing(store: Store) -> None:
    made = [make_file(store, number) for number in range(5)]
    seen: list[str] = []
    after: str | None = None
    more = True
    while more:
        files, more = store.files.list(purpose=None, after=after, limit=1, descending=True)
        seen += ids(files)
        after = files[-1].id
        store.files.delete(after)

    assert seen == list(reversed(ids(made)))


def test_files_are_listed_by_purpose_in_both_orders(store: Store) -> None:
    first, _, third = make_file(store, 1), make_file(store, 2, "batch"), make_file(store, 3)

    ascending, _ = store.files.list(purpose="fine-tune", after=None, limit=9, descending=False)
    descending, _ = store.files.list(purpose="fine-tune", after=None, limit=9, descending=True)

    assert ids(ascending) == [first.id, third.id]
    assert ids(descending) == [third.id, first.id]


def test_a_cursor_that_never_existed_is_refused(store: Store) -> None:
    with pytest.raises(InvalidRequest, match="file-x"):
        store.files.list(purpose=None, after="file-x", limit=1, descending=True)
