"""Writers take turns, and those that meet share a commit: what takes long about one is the disk's sync."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine

#: The execution option of a connection whose transaction writes.
WRITES = "caesura_write"
#: So many transactions share a commit at most: the first of them waits for the last.
MAX_SHARED = 64


class Writers:
    """SQLite lets one writer through at a time and makes the others poll for it: within a process a lock is fairer.

    Whoever has written while others wait leaves the transaction to the next of them, and waits until the last has
    committed for all. Each has a savepoint of its own, so that one that fails takes nothing of the others with it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self._num_waiting = 0
        self._shared: _Shared | None = None

    @contextmanager
    def write(self) -> Generator[Connection, None, None]:
        """When the block has been left, what it wrote is on the disk; nothing of it is there when this raises."""
        self._count(1)
        with self._turn:
            self._count(-1)
            shared = self._shared or _Shared(self._engine)
            self._shared = None
            try:
                with shared.savepoint():
                    yield shared.connection
            finally:
                if self._num_waiting and shared.num_written < MAX_SHARED and not shared.is_lost:
                    self._shared = shared
                else:
                    shared.end()
        shared.wait()

    def _count(self, change: int) -> None:
        with self._counting:
            self._num_waiting += change


class _Shared:
    """A transaction, and those that wait for its commit."""

    def __init__(self, engine: Engine) -> None:
        self.connection = engine.connect()
        self.num_written = 0
        self.is_lost = False
        self._ended = threading.Event()
        self._fault: BaseException | None = None
        try:
            self.connection.execution_options(**{WRITES: True}).begin()
        except BaseException:
            self.connection.close()
            raise

    @contextmanager
    def savepoint(self) -> Generator[None, None, None]:
        driver: Any = self.connection.connection.driver_connection
        driver.execute("SAVEPOINT turn")
        try:
            yield
        except BaseException:
            if driver.in_transaction:
                driver.execute("ROLLBACK TO turn")
                driver.execute("RELEASE turn")
            else:
                self.is_lost = True  # a full disk, say: the database has undone it all
            raise
        driver.execute("RELEASE turn")
        self.num_written += 1

    def end(self) -> None:
        """Commit, and let go those that wait."""
        try:
            if self.is_lost:
                raise sqlite3.OperationalError("a transaction that shared this commit was undone, and all with it")
            self.connection.commit()
        except BaseException as fault:
            self._fault = fault
            driver: Any = self.connection.connection.driver_connection
            if driver.in_transaction:
                driver.rollback()
        finally:
            self.connection.close()
            self._ended.set()

    def wait(self) -> None:
        """Until it is committed. Raises what kept it from it."""
        self._ended.wait()
        if self._fault is not None:
            raise self._fault
