"""What the API can at most do on this machine: commits a second of SQLite, SHA-256, the disk."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
import time
from pathlib import Path

from benchmarks.programs import arguments, finish

_PIECE = os.urandom(1 << 20)
#: About a job's row.
_ROW = "x" * 1000


def main() -> None:
    seconds = arguments()["seconds"]
    with tempfile.TemporaryDirectory() as folder:
        finish(
            {
                "commits_per_s": _commits(Path(folder) / "limit.db", seconds),
                "hashed_mb_per_s": _hashed(seconds),
                "written_mb_per_s": _written(Path(folder) / "blob", arguments()["num_bytes"]),
            }
        )


def _commits(path: Path, seconds: float) -> float:
    """With the pragmas of the store: each is on the disk when it returns."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY, text TEXT)")
    num, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO rows (text) VALUES (?)", (_ROW,))
        connection.execute("COMMIT")
        num += 1
    return num / (time.perf_counter() - began)


def _hashed(seconds: float) -> float:
    hashed, num, began = hashlib.sha256(), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        hashed.update(_PIECE)
        num += 1
    return num * len(_PIECE) / 1e6 / (time.perf_counter() - began)


def _written(path: Path, num_bytes: int) -> float:
    began = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(num_bytes // len(_PIECE)):
            file.write(_PIECE)
        file.flush()
        os.fsync(file.fileno())
    return num_bytes / 1e6 / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
