"""Queries of one row that are asked very often: straight to the driver, in words that were found once."""

from __future__ import annotations

import sqlite3
import threading
from typing import Any

from sqlalchemy import Dialect, Engine, PoolProxiedConnection, Select

from caesura.store.database import telling_faults

#: Of the database's pages, in memory: what is asked for often is not read anew each time.
CACHE_KIB = 32 * 1024


class Asking:
    """The one connection that all of them go by, opened at the first. An answer takes some microseconds: they queue."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.Lock()
        self._connection: PoolProxiedConnection | None = None

    def ask(self, text: str, parameters: list[Any]) -> tuple[Any, ...] | None:
        """The row. Raises DatabaseUnavailable."""
        with telling_faults(sqlite3.OperationalError), self._turn:
            if self._connection is None:
                self._connection = self._engine.raw_connection()
                self._connection.cursor().execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            driver: Any = self._connection.driver_connection
            return driver.execute(text, parameters).fetchone()

    def close(self) -> None:
        with self._turn:
            if self._connection is not None:
                self._connection.close()
            self._connection = None


class Prepared:
    """A query of one row. A single statement sees one state of the database by itself, so it takes no transaction, and
    all the layers between would take longer than the database does. May be called from any thread.
    """

    def __init__(self, asking: Asking, query: Select[Any], dialect: Dialect) -> None:
        compiled = query.compile(dialect=dialect)
        self._asking = asking
        self._text = str(compiled)
        self._order = compiled.positiontup or []
        #: Those that stand in the query itself.
        self._fixed: dict[str, Any] = dict(compiled.params)
        self._columns = [
            (str(column.key), column.type.dialect_impl(dialect).result_processor(dialect, None))
            for column in query.selected_columns
        ]

    def __call__(self, **parameters: str | int) -> dict[str, Any] | None:
        """The row: column → value. Raises DatabaseUnavailable."""
        values = self._fixed | parameters
        row = self._asking.ask(self._text, [values[name] for name in self._order])
        if row is None:
            return None
        columns = zip(self._columns, row, strict=True)
        return {name: value if read is None else read(value) for (name, read), value in columns}
