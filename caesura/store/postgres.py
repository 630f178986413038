"""PostgreSQL: the database of several servers, on machines of their own."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, Select, create_engine, func, make_url, select
from sqlalchemy.exc import ArgumentError

from caesura import faults
from caesura.errors import SettingsInvalid
from caesura.faults import Point
from caesura.store.database import migrate, telling_faults, to_json, write_also

#: Connections that are kept, and those that may come beside them for a while; a request waits for one for so long.
POOL_SIZE, MAX_OVERFLOW, POOL_TIMEOUT_S = 5, 15, 30
CONNECT_TIMEOUT_S = 10
#: What every connection asks of the server. FULL durability, whatever the server's own settings say; nobody waits for a
#: lock for ever; and a process that is stopped in the middle of a transaction keeps its locks no longer than that.
OPTIONS = (
    "-c synchronous_commit=on -c lock_timeout=60s -c idle_in_transaction_session_timeout=30s -c client_encoding=UTF8"
)


class PostgresDatabase:
    """Implements Database. Write transactions see what others have committed meanwhile, each statement anew (READ
    COMMITTED); reads see one state throughout (REPEATABLE READ).
    """

    is_at_hand = False

    def __init__(self, url: str) -> None:
        """Raises SettingsInvalid for a URL that is none, and where the driver is not installed."""
        self._engine = _create_engine(_parse(url))

    def migrate(self) -> None:
        with self.write() as connection:
            self.alone(connection, "migrations")
            migrate(connection)

    @contextmanager
    def read(self) -> Generator[Connection, None, None]:
        with telling_faults(), self._engine.connect() as connection:
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            yield connection

    @contextmanager
    def write(self) -> Generator[Connection, None, None]:
        with telling_faults(), self._engine.begin() as connection:
            yield connection
            write_also(connection)
        faults.point(Point.ROWS_COMMITTED)

    def alone(self, connection: Connection, name: str) -> None:
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"caesura {name}", 0))))

    def prepare(self, query: Select[Any]) -> _Query:
        return _Query(self, query)

    def checkpoint(self) -> None:
        """The server does it by itself."""

    def close(self) -> None:
        self._engine.dispose()


class _Query:
    def __init__(self, database: PostgresDatabase, query: Select[Any]) -> None:
        self._database = database
        self._query = query

    def __call__(self, **parameters: str | int) -> Mapping[str, Any] | None:
        with self._database.read() as connection:
            row = connection.execute(self._query, parameters).mappings().one_or_none()
        return None if row is None else {str(name): value for name, value in row.items()}


def _parse(url: str) -> URL:
    form = "It must look like postgresql://user:password@host:5432/name."
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SettingsInvalid(f"The setting 'database_url' is not a URL. {form}") from error
    if parsed.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise SettingsInvalid(f"The setting 'database_url' names the kind '{parsed.drivername}'. {form}")
    return parsed.set(drivername="postgresql+psycopg")


def _create_engine(url: URL) -> Engine:
    given = url.query.get("options", "")
    options = " ".join((OPTIONS, *((given,) if isinstance(given, str) else given))).strip()
    try:
        return create_engine(
            url.difference_update_query(["options"]),
            isolation_level="READ COMMITTED",
            json_serializer=to_json,
            pool_size=POOL_SIZE,
            max_overflow=MAX_OVERFLOW,
            pool_timeout=POOL_TIMEOUT_S,
            # A server that was started again has closed what the pool holds.
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_S,
                "options": options,
                # Statements are few and short: what the driver would save by naming them it would pay behind poolers.
                "prepare_threshold": None,
            },
        )
    except ModuleNotFoundError as error:
        raise SettingsInvalid(
            "The setting 'database_url' names a PostgreSQL database, whose driver is not installed. Install it: "
            "pip install 'caesura[postgres]'"
        ) from error
