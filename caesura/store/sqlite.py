"""SQLite, in one file: the database of one machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Select, create_engine, event

from caesura import faults
from caesura.faults import Point
from caesura.store.database import migrate, telling_faults, to_json, write_also
from caesura.store.prepared import Asking, Prepared
from caesura.store.writers import WRITES, Writers

#: How long a write waits for another process's transaction before it fails, seconds.
BUSY_TIMEOUT_S = 60
#: The log is moved into the database by the scheduler (`checkpoint`), or at this length by whoever commits: 64 MiB.
MAX_LOG_PAGES = 16_384


class SqliteDatabase:
    """Implements Database over the file `path`."""

    is_at_hand = True

    def __init__(self, path: Path) -> None:
        self._engine = create_engine(f"sqlite:///{path}", json_serializer=to_json)
        self._writers = Writers(self._engine)
        self._asking = Asking(self._engine)
        _listen(self._engine)

    def migrate(self) -> None:
        with self.write() as connection:
            migrate(connection)

    @contextmanager
    def read(self) -> Generator[Connection, None, None]:
        with telling_faults(sqlite3.OperationalError), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Generator[Connection, None, None]:
        """One writer at a time, in this process and in others: nothing changes under a transaction."""
        with telling_faults(sqlite3.OperationalError), self._writers.write() as connection:
            yield connection
            write_also(connection)
        faults.point(Point.ROWS_COMMITTED)

    def alone(self, connection: Connection, name: str) -> None:
        """It is."""

    def prepare(self, query: Select[Any]) -> Prepared:
        return Prepared(self._asking, query, self._engine.dialect)

    def checkpoint(self) -> None:
        """Move what was written from the log into the database proper, while others go on reading and writing.

        Left to itself the database does it within somebody's commit, who waits for it.
        """
        with telling_faults(sqlite3.OperationalError), self._engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        self._asking.close()
        self._engine.dispose()


def _listen(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        # The driver's own idea of when a transaction begins is late: a read, then a write that finds the row changed.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        # FULL: a commit that was answered survives a power cut.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={MAX_LOG_PAGES}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        writes = connection.get_execution_options().get(WRITES, False)
        # By the driver's own connection: to go through all the layers takes longer than most reads.
        driver: Any = connection.connection.driver_connection
        driver.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
