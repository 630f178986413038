from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import insert, select, text

from caesura.errors import DatabaseUnavailable
from caesura.store import Store, database, open_store, tables
from caesura.store.sqlite import SqliteDatabase
from tests.store.conftest import MakeJob, only_sqlite


def test_the_migrations_make_exactly_the_tables(store: Store) -> None:
    with store.database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []


def test_the_jobs_of_an_older_server_are_kept(tmp_path: Path) -> None:
    """Of one whose jobs did not start from tuned models."""
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    older = SqliteDatabase(tmp_path / "caesura.db")
    method = json.dumps({"type": "supervised", "supervised": {"hyperparameters": {}}})
    with older.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.execute(
            text(
                "INSERT INTO jobs (id, created_at, status, base, model_name, method, training_file, training_blob,"
                " seed, integrations, result_files, step, attempt, stalled_attempts) VALUES ('ftjob-1', 1, 'queued',"
                " 'tiny', 'ft:tiny', :method, 'file-1', 'files/1', 7, '[]', '[]', 0, 0, 0)"
            ),
            {"method": method},
        )
    older.close()
    store = open_store(tmp_path)

    job = store.jobs.get("ftjob-1")
    assert (job.base, job.seed, job.start_model, job.start_adapter) == ("tiny", 7, None, None)
    assert store.recovery.referenced_blobs() == {"files/1"}
    store.close()


def test_opening_a_store_again_finds_what_was_written(
    store: Store, make_job: MakeJob, open_again: Callable[[], Store]
) -> None:
    job = make_job()
    again = open_again()

    assert again.jobs.get(job.id) == job
    again.close()


def test_a_write_that_raises_is_undone(store: Store, make_job: MakeJob) -> None:
    job = make_job()

    def broken() -> None:
        with store.database.write() as connection:
            connection.execute(text("UPDATE jobs SET status = 'succeeded'"))
            raise RuntimeError("after the update")

    with pytest.raises(RuntimeError, match="after the update"):
        broken()

    assert store.jobs.get(job.id) == job


def test_an_event_of_no_job_cannot_be_written(store: Store) -> None:
    row = {"id": "e", "job_id": "no", "created_at": 1, "level": "info", "message": "", "type": "message", "data": {}}

    def write() -> None:
        with store.database.write() as connection:
            connection.execute(insert(tables.events).values(row))

    with pytest.raises(Exception, match=r"(?i)foreign key"):
        write()


@only_sqlite
def test_a_commit_survives_a_power_cut(store: Store) -> None:
    with store.database.read() as connection:
        full = 2
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == full
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(select(text("1"))).scalar_one() == 1


@only_sqlite
def test_a_database_that_stays_locked_is_said_and_nothing_is_changed(
    open_again: Callable[[], Store], store: Store, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    monkeypatch.setattr("caesura.store.sqlite.BUSY_TIMEOUT_S", 0)
    other = open_again()
    with store.database.write(), pytest.raises(DatabaseUnavailable, match="locked"):
        other.jobs.cancel(job.id)

    assert other.jobs.get(job.id) == job
    other.close()
