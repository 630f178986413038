"""The contract of a database: connections and transactions. Only `sqlite` and `postgres`, which keep it, know more."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, cast

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Select
from sqlalchemy.exc import DataError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from caesura import faults
from caesura.errors import DatabaseUnavailable, InvalidRequest
from caesura.faults import Point

_MIGRATIONS = Path(__file__).parent / "migrations"

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


def write_also(connection: Connection) -> None:
    """For every `Database.write`, at its end."""
    also = _also.get()
    if also is not None:
        also(connection)
    faults.point(Point.ROWS_WRITTEN)


class Query(Protocol):
    """A query of one row, prepared. May be called from any thread."""

    def __call__(self, **parameters: str | int) -> Mapping[str, Any] | None:
        """The row: column → value. Raises DatabaseUnavailable."""
        ...


class Database(Protocol):
    """A SQL database. `read()` and `write()` may be used from any thread."""

    @property
    def is_at_hand(self) -> bool:
        """Whether a prepared query takes some microseconds, so that an event loop may wait for it."""
        ...

    def migrate(self) -> None:
        """Bring the tables up to date; nothing happens when they are."""
        ...

    def read(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one state of the database throughout. Raises DatabaseUnavailable."""
        ...

    def write(self) -> AbstractContextManager[Connection]:
        """A transaction that is committed when the block ends, undone when it raises.

        Others may write at the same time: what it builds on it takes first (a conditional UPDATE, `with_for_update`,
        `alone`). Raises DatabaseUnavailable.
        """
        ...

    def alone(self, connection: Connection, name: str) -> None:
        """Wait until no other write transaction is alone with `name`; then none will be until this one has ended."""
        ...

    def prepare(self, query: Select[Any]) -> Query:
        """The query of one row, for what is asked most often."""
        ...

    def checkpoint(self) -> None:
        """Tidy up what else somebody's commit would have to; called every few seconds."""
        ...

    def close(self) -> None: ...


def migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def to_json(value: Any) -> str:
    """As JSON columns are written: a number that JSON has no word for (NaN, an infinity) is null."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in cast(list[Any], value)]
    return value


@contextmanager
def telling_faults(*of_driver: type[Exception]) -> Generator[None, None, None]:
    """Tell the database's own faults, and these of its driver, in our words."""
    try:
        yield
    except DataError as error:
        raise InvalidRequest(
            "A text of this request has a character that cannot be kept (NUL), or a number is too large. Send it "
            "without."
        ) from error
    except (OperationalError, PoolTimeout, *of_driver) as error:
        raise DatabaseUnavailable from error
    except DBAPIError as error:
        if error.connection_invalidated:  # the server has closed it
            raise DatabaseUnavailable from error
        raise
