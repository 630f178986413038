"""Tar archives in pieces, so that none is ever whole in memory. The same files make the same bytes."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_BLOCK_BYTES = 512
_END = bytes(2 * _BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file to be: `pieces` are read once, and have `num_bytes` together."""

    name: str
    num_bytes: int
    pieces: Iterable[bytes]


def of_bytes(name: str, data: bytes) -> Entry:
    return Entry(name, len(data), (data,))


def write_tar(folder: str, entries: Iterable[Entry], mtime: int) -> Iterator[bytes]:
    """The archive of a folder with these files."""
    for entry in entries:
        yield _header(folder, entry, mtime)
        yield from entry.pieces
        if padding := -entry.num_bytes % _BLOCK_BYTES:
            yield bytes(padding)
    yield _END


def tar_bytes(folder: str, entries: Iterable[Entry], mtime: int) -> int:
    """How many bytes `write_tar` makes; no piece is read."""
    parts = (
        len(_header(folder, entry, mtime)) + entry.num_bytes + -entry.num_bytes % _BLOCK_BYTES for entry in entries
    )
    return sum(parts) + len(_END)


def _header(folder: str, entry: Entry, mtime: int) -> bytes:
    info = tarfile.TarInfo(f"{folder}/{entry.name}")
    info.size, info.mtime, info.mode = entry.num_bytes, mtime, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)
