"""Connections and transactions. Nothing else in the package knows the dialect."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, Select, create_engine, event

from caesura import faults
from caesura.faults import Point
from caesura.store.prepared import Asking, Prepared, told_as_unavailable
from caesura.store.writers import WRITES, Writers

_MIGRATIONS = Path(__file__).parent / "migrations"
#: How long a write waits for another process's transaction before it fails, seconds.
BUSY_TIMEOUT_S = 60
#: The log is moved into the database by the scheduler (`checkpoint`), or at this length by whoever commits: 64 MiB.
MAX_LOG_PAGES = 16_384


#: What every write transaction of this context also writes, last.
_also: ContextVar[Callable[[Connection], None] | None] = ContextVar("_also", default=None)


@contextmanager
def also_write(write: Callable[[Connection], None]) -> Generator[None, None, None]:
    """Have every write transaction that is begun within, in threads that are run from here too, call `write` last."""
    token = _also.set(write)
    try:
        yield
    finally:
        _also.reset(token)


class Database:
    """A SQL database. `read()` and `write()` may be used from any thread."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = create_engine(url)
        self._writers = Writers(self._engine)
        self._asking = Asking(self._engine)
        _listen(self._engine)

    def migrate(self) -> None:
        """Bring the tables up to date; nothing happens when they are."""
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self.write() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def read(self) -> Generator[Connection, None, None]:
        """A transaction that sees one state of the database throughout. Raises DatabaseUnavailable."""
        with told_as_unavailable(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Generator[Connection, None, None]:
        """A transaction that is committed when the block ends, undone when it raises. Raises DatabaseUnavailable."""
        with told_as_unavailable(), self._writers.write() as connection:
            yield connection
            also = _also.get()
            if also is not None:
                also(connection)
            faults.point(Point.ROWS_WRITTEN)
        faults.point(Point.ROWS_COMMITTED)

    def prepare(self, query: Select[Any]) -> Prepared:
        """The query of one row, for what is asked most often."""
        return Prepared(self._asking, query, self._engine.dialect)

    def checkpoint(self) -> None:
        """Move what was written from the log into the database proper, while others go on reading and writing.

        Left to itself the database does it within somebody's commit, who waits for it.
        """
        with told_as_unavailable(), self._engine.connect() as connection:
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
