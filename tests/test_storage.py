from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caesura.errors import BlobDamaged, StorageUnavailable
from caesura.storage import LocalStorage, get_files, put_files


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "blobs")


def write(storage: LocalStorage, key: str, *pieces: bytes) -> None:
    with storage.writer(key) as writer:
        for piece in pieces:
            writer.write(piece)


def keys(storage: LocalStorage) -> set[str]:
    return {key for key, _ in storage.list()}


def test_a_blob_reads_as_it_was_written(storage: LocalStorage) -> None:
    with storage.writer("files/a") as writer:
        writer.write(b"one ")
        writer.write(b"two")

    with storage.open("files/a") as blob:
        assert blob.read() == b"one two"
    assert (writer.blob.key, writer.blob.bytes) == ("files/a", 7)
    assert writer.blob.sha256 == hashlib.sha256(b"one two").hexdigest()


def test_a_writer_that_raises_leaves_nothing(storage: LocalStorage) -> None:
    def broken() -> None:
        with storage.writer("files/a") as writer:
            writer.write(b"half")
            raise RuntimeError("the client went away")

    with pytest.raises(RuntimeError, match="the client went away"):
        broken()

    assert keys(storage) == set()


def test_a_blob_is_written_once(storage: LocalStorage) -> None:
    write(storage, "files/a", b"first")

    with pytest.raises(StorageUnavailable):
        write(storage, "files/a", b"second")

    with storage.open("files/a") as blob:
        assert blob.read() == b"first"
    assert keys(storage) == {"files/a"}


def test_a_blob_does_not_exist_before_it_is_whole(storage: LocalStorage) -> None:
    with storage.writer("files/a") as writer:
        writer.write(b"half")
        with pytest.raises(BlobDamaged):
            storage.open("files/a")


def test_a_full_disk_is_said_and_leaves_nothing(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(StorageUnavailable, match="may be full"):
        write(storage, "files/a", b"data")

    assert keys(storage) == set()


def test_a_missing_blob_is_said_by_its_key(storage: LocalStorage) -> None:
    with pytest.raises(BlobDamaged, match="files/a"):
        storage.open("files/a")


def test_deleting_twice_is_no_fault(storage: LocalStorage) -> None:
    write(storage, "adapters/x/a", b"data")

    storage.delete("adapters/x/a")
    storage.delete("adapters/x/a")

    assert keys(storage) == set()


def test_files_read_back_as_they_were_put(storage: LocalStorage) -> None:
    files = {"a.json": b"{}", "b.bin": bytes(range(256))}

    artifact = put_files(storage, "adapters", files)

    assert get_files(storage, artifact) == files


def test_a_file_in_pieces_is_stored_as_one_and_read_back_whole(storage: LocalStorage) -> None:
    class Pieces:
        def __iter__(self) -> Iterator[bytes | memoryview]:
            yield b"one "
            yield memoryview(b"two")

        def __bytes__(self) -> bytes:
            return b"".join(self)

    artifact = put_files(storage, "adapters", {"a": Pieces(), "b": b"whole"})

    assert get_files(storage, artifact) == {"a": b"one two", "b": b"whole"}
    assert artifact.files["a"] == (7, hashlib.sha256(b"one two").hexdigest())


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.write_bytes(b"[]"), lambda path: path.write_bytes(b"{"), lambda path: path.unlink()],
    ids=["changed", "truncated", "deleted"],
)
def test_damage_is_noticed(storage: LocalStorage, tmp_path: Path, damage: object) -> None:
    artifact = put_files(storage, "adapters", {"a.json": b"{}"})
    assert callable(damage)

    damage(tmp_path / "blobs" / artifact.key("a.json"))

    with pytest.raises(BlobDamaged):
        get_files(storage, artifact)


def test_two_artifacts_never_share_a_prefix(storage: LocalStorage) -> None:
    assert put_files(storage, "adapters", {}).prefix != put_files(storage, "adapters", {}).prefix


def test_a_folder_that_is_deleted_as_a_blob_is_opened_in_it_is_made_again(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, lost = Path.mkdir, list[Path]()

    def make_and_lose(self: Path, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        if self.name == "files" and not lost:  # another server deletes the last blob there
            self.rmdir()
            lost.append(self)

    monkeypatch.setattr(Path, "mkdir", make_and_lose)
    with storage.writer("files/a") as writer:
        writer.write(b"a")

    assert lost
    with storage.open("files/a") as file:
        assert file.read() == b"a"


def test_a_folder_that_is_deleted_while_blobs_are_listed_is_passed_over(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        with storage.writer(f"adapters/{name}/weights"):
            pass
    scan = os.scandir

    def scan_and_lose(folder: Any) -> Any:
        if Path(folder).name == "b":
            storage.delete("adapters/b/weights")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scan_and_lose)

    assert {key for key, _ in storage.list()} == {"adapters/a/weights", "adapters/c/weights"}


def test_a_folder_that_cannot_be_listed_is_no_empty_one(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_folder: Any) -> Any:
        raise PermissionError

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        list(storage.list())
