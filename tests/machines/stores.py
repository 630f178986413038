"""Empty databases of each kind, opened twice, as two servers would."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from caesura.store import Store, open_store
from caesura.store.postgres import PostgresDatabase
from caesura.store.sqlite import SqliteDatabase
from tests.postgres import ABSENT, PostgresServer, find_binaries, running_postgres

#: With it in the environment other histories are tried at every run, and many more; without it always the same ones.
EXPLORE = "EXPLORE"


def search(num_examples: int, num_steps: int = 1) -> settings:
    """How histories are looked for: the same at every run, unless the environment asks for others."""
    explores = EXPLORE in os.environ
    return settings(
        max_examples=num_examples * int(os.environ.get(EXPLORE) or 1),
        stateful_step_count=num_steps,
        derandomize=not explores,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=(Phase.generate,) if explores else (Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def _open_sqlite() -> Generator[tuple[Store, Store], None, None]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "caesura.db"
        path.write_bytes(_empty_sqlite())
        first, second = (Store(SqliteDatabase(path)) for _ in range(2))
        try:
            yield first, second
        finally:
            first.close()
            second.close()


@cache
def _empty_sqlite() -> bytes:
    """The file of a database whose tables were made, which takes longer than most histories."""
    with tempfile.TemporaryDirectory() as folder:
        open_store(Path(folder)).close()
        return (Path(folder) / "caesura.db").read_bytes()


@contextmanager
def _open_postgres() -> Generator[tuple[Store, Store], None, None]:
    url = _postgres().new_database()
    first, second = (Store(PostgresDatabase(url)) for _ in range(2))
    try:
        yield first, second
    finally:
        first.close()
        second.close()


@cache
def _postgres() -> PostgresServer:
    """One for all histories; hypothesis takes no fixture into them. It ends with this process."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(ABSENT)
    opened = ExitStack()
    atexit.register(opened.close)
    return opened.enter_context(running_postgres(binaries))


_OPENERS: dict[str, Callable[[], AbstractContextManager[tuple[Store, Store]]]] = {
    "sqlite": _open_sqlite,
    "postgres": _open_postgres,
}
KINDS = list(_OPENERS)


def open_stores(kind: str) -> AbstractContextManager[tuple[Store, Store]]:
    """Two stores on one empty database of this kind, which is gone afterwards."""
    return _OPENERS[kind]()
