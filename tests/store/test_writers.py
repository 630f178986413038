from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import event

from caesura.errors import DatabaseUnavailable
from caesura.store.database import also_write
from caesura.store.sqlite import SqliteDatabase
from tests.test_scheduler import wait_until


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    database = SqliteDatabase(tmp_path / "test.db")
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE numbers (number INTEGER)")
    yield database
    database.close()


def numbers(database: SqliteDatabase) -> list[int]:
    with database.read() as connection:
        return sorted(connection.exec_driver_sql("SELECT number FROM numbers").scalars())


class Crowd:
    """Writers of whom the first is held in its turn until all others wait for theirs."""

    def __init__(self, database: SqliteDatabase, *faulty: int) -> None:
        self._database = database
        self._faulty = faulty
        self.num_commits = 0
        event.listen(database._engine, "commit", self._count)

    def _count(self, _connection: object) -> None:
        self.num_commits += 1

    def run(self, num: int) -> list[BaseException | None]:
        """What each of the writers met."""
        entered = threading.Event()

        def write(number: int) -> None:
            with self._database.write() as connection:
                if number == 0:
                    entered.set()
                    wait_until(lambda: self._database._writers._num_waiting == num - 1, "the others to wait")
                connection.exec_driver_sql(f"INSERT INTO numbers VALUES ({number})")
                if number in self._faulty:
                    raise ValueError(number)

        with ThreadPoolExecutor(num) as pool:
            first = pool.submit(write, 0)
            assert entered.wait(30)
            written = [first, *(pool.submit(write, number) for number in range(1, num))]
            return [one.exception() for one in written]


def test_writers_that_wait_for_each_other_share_one_commit(database: SqliteDatabase) -> None:
    crowd = Crowd(database)

    assert crowd.run(8) == [None] * 8
    assert numbers(database) == list(range(8))
    assert crowd.num_commits == 1


@pytest.mark.parametrize("faulty", [0, 3, 7])
def test_a_writer_that_fails_takes_nothing_of_the_others_with_it(database: SqliteDatabase, faulty: int) -> None:
    met = Crowd(database, faulty).run(8)

    assert [type(error) for error in met if error is not None] == [ValueError]
    assert numbers(database) == [number for number in range(8) if number != faulty]


def test_a_commit_that_fails_fails_who_wrote(database: SqliteDatabase) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
        connection.exec_driver_sql(
            "CREATE TABLE children (parent INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED)"
        )
    met: list[BaseException | None] = []
    with also_write(lambda connection: connection.exec_driver_sql("INSERT INTO children VALUES (1)") and None):
        try:
            with database.write() as connection:
                connection.exec_driver_sql("INSERT INTO numbers VALUES (1)")
        except Exception as error:
            met.append(error)

    assert len(met) == 1
    assert numbers(database) == []
    with database.write() as connection:  # the next one is none the worse
        connection.exec_driver_sql("INSERT INTO numbers VALUES (2)")
    assert numbers(database) == [2]


def test_a_transaction_that_the_database_undid_is_over(database: SqliteDatabase) -> None:
    def be_undone() -> None:
        with database.write() as connection:
            connection.exec_driver_sql("INSERT INTO numbers VALUES (1)")
            connection.connection.driver_connection.execute("ROLLBACK")  # type: ignore[union-attr]
            raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        be_undone()
    assert numbers(database) == []
    assert Crowd(database).run(3) == [None] * 3


def test_what_is_also_written_is_of_the_same_transaction(database: SqliteDatabase) -> None:
    with pytest.raises(ZeroDivisionError), also_write(lambda _: 1 // 0 and None), database.write() as connection:
        connection.exec_driver_sql("INSERT INTO numbers VALUES (1)")
    assert numbers(database) == []

    with also_write(lambda connection: connection.exec_driver_sql("INSERT INTO numbers VALUES (7)") and None):
        with ThreadPoolExecutor(1) as pool, database.write():
            pool.submit(int).result()
        with database.read():
            pass
    with database.write():
        pass
    assert numbers(database) == [7]


def test_a_locked_database_is_told_as_unavailable(
    database: SqliteDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SqliteDatabase(tmp_path / "test.db")
    with other.write(), monkeypatch.context() as patch:
        patch.setattr("caesura.store.sqlite.BUSY_TIMEOUT_S", 0)
        database._engine.dispose()
        with pytest.raises(DatabaseUnavailable), database.write():
            pass
    other.close()
