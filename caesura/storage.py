"""Blobs: bytes under a key, written once, whole or not at all. Rows name them; a blob that no row names is swept.

Local disk. A key is a relative path such as `adapters/3f…/adapter_model.safetensors`.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from caesura import faults
from caesura.errors import BlobDamaged, StorageUnavailable
from caesura.faults import Point
from caesura.ids import new_token
from caesura.jobs import Artifact

_KEY = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
_TEMPORARY = ".tmp"
#: A folder is made again so often.
MAX_TRIES = 10


@dataclass(frozen=True, slots=True)
class Blob:
    key: str
    bytes: int
    sha256: str


class BlobWriter(Protocol):
    """A blob in the making, as a context: leaving it normally makes the blob exist, an exception leaves nothing."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises StorageUnavailable when the storage takes no more."""
        ...

    @property
    def blob(self) -> Blob:
        """What was written; to be read after the context was left."""
        ...


class Storage(Protocol):
    """Where blobs live. Every method may be called from any thread and any process at once."""

    def writer(self, key: str) -> BlobWriter:
        """Begin the blob `key`, which must be new: keys hold a random part, so no two writers meet.

        When the writer's context has been left, the bytes survive a power cut.
        """
        ...

    def open(self, key: str) -> BinaryIO:
        """Read the blob from its start. Raises BlobDamaged when there is none."""
        ...

    def list(self) -> Iterator[tuple[str, float]]:
        """Every key, unfinished ones included, with the seconds since it was last written."""
        ...

    def delete(self, key: str) -> None:
        """Remove the blob; nothing happens when it is gone already."""
        ...


class Pieces(Protocol):
    """A file that is made while it is written, so that it is never in memory as a whole. Each time that it is gone
    through it gives the same bytes."""

    def __iter__(self) -> Iterator[bytes | memoryview]: ...
    def __bytes__(self) -> bytes: ...


Content = bytes | Pieces


def put_files(storage: Storage, kind: str, files: Mapping[str, Content]) -> Artifact:
    """Store `files` under a new prefix of their own, `{kind}/{random}`."""
    prefix = f"{kind}/{new_token()}"
    written: dict[str, tuple[int, str]] = {}
    for name, data in files.items():
        with storage.writer(f"{prefix}/{name}") as writer:
            for piece in (data,) if isinstance(data, bytes) else data:
                writer.write(piece)
        written[name] = (writer.blob.bytes, writer.blob.sha256)
    return Artifact(prefix, written)


def get_files(storage: Storage, artifact: Artifact) -> dict[str, bytes]:
    """The files of `artifact`. Raises BlobDamaged when one is missing or does not match its checksum."""
    files: dict[str, bytes] = {}
    for name, (size, sha256) in artifact.files.items():
        with storage.open(artifact.key(name)) as blob:
            data = blob.read()
        if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
            raise BlobDamaged(f"The stored file '{name}' does not match its checksum.")
        files[name] = data
    return files


class LocalStorage:
    """Blobs as files below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def writer(self, key: str) -> LocalWriter:
        return LocalWriter(self._path(key), key)

    def open(self, key: str) -> BinaryIO:
        try:
            return self._path(key).open("rb")
        except FileNotFoundError as error:
            raise BlobDamaged(f"The stored blob '{key}' is missing.") from error

    def list(self) -> Iterator[tuple[str, float]]:
        now = time.time()
        for folder, _, names in os.walk(self._root, onerror=_raise_unless_gone):
            for path in (Path(folder, name) for name in names):
                with suppress(FileNotFoundError):
                    yield path.relative_to(self._root).as_posix(), now - path.stat().st_mtime

    def delete(self, key: str) -> None:
        path = self._path(key)
        path.unlink(missing_ok=True)
        with suppress(OSError):  # the folder holds other blobs, or is gone
            if path.parent != self._root:
                path.parent.rmdir()

    def _path(self, key: str) -> Path:
        assert _KEY.fullmatch(key), key
        assert ".." not in key.split("/"), key
        return self._root / key


class LocalWriter:
    """Writes beside the final name, syncs, then links: a crash leaves a temporary file to sweep, never half a blob."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + _TEMPORARY)
        self._key = key
        self._hash = hashlib.sha256()
        self._size = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            self._file = self._open()
            faults.point(Point.BLOB_OPENED)
        except OSError as error:
            raise StorageUnavailable from error
        return self

    def _open(self) -> BinaryIO:
        for _ in range(MAX_TRIES):
            # Who deletes the last blob of a folder deletes the folder: perhaps between these two.
            with suppress(FileNotFoundError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                return self._temporary.open("xb")
        raise FileNotFoundError(self._temporary)

    def write(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        try:
            for piece in faults.halves(Point.BLOB_HALF, data):
                self._file.write(piece)
        except OSError as error:
            raise StorageUnavailable from error
        self._hash.update(data)
        self._size += len(data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            if error is None:
                faults.point(Point.BLOB_WRITTEN)
                self._file.flush()
                os.fsync(self._file.fileno())
                faults.point(Point.BLOB_SYNCED)
                os.link(self._temporary, self._path)  # fails where the key exists: a blob is written once
                faults.point(Point.BLOB_LINKED)
                _sync_folder(self._path.parent)
                _sync_folder(self._path.parent.parent)
                faults.point(Point.BLOB_DURABLE)
        except OSError as failure:
            raise StorageUnavailable from failure
        finally:
            with suppress(OSError):  # closing flushes what a full disk will not take
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    @property
    def blob(self) -> Blob:
        return Blob(self._key, self._size, self._hash.hexdigest())


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
