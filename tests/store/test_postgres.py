"""What only PostgreSQL is asked: several servers write at the same time, and the server comes and goes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, select, text, update

from caesura.errors import DatabaseUnavailable, InvalidRequest, LeaseLost, SettingsInvalid
from caesura.jobs import Job, Lease, Status, Told
from caesura.store import Store, open_store, tables
from caesura.store import postgres as database
from caesura.store.announcing import announce
from tests.postgres import PostgresServer
from tests.store.conftest import MakeJob, make_state, messages, step_telling
from tests.world import wait_until

Open = Callable[[], Store]
Claim = Callable[..., Lease]
_JOBS = tables.jobs.c


@pytest.fixture
def database_url(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def num_waiting(store: Store) -> int:
    """How many of the database's connections wait for another's lock."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with store.database.write() as connection:
        return connection.execute(waiting).scalar_one()


@contextmanager
def meanwhile(
    store: Store, job: Job, pool: ThreadPoolExecutor, *calls: Callable[[], object]
) -> Iterator[tuple[Connection, list[Future[object]]]]:
    """A transaction that has the job's row, and the calls, which wait for it by the time that the block is entered."""
    with store.database.write() as connection:
        connection.execute(select(_JOBS.seq).where(_JOBS.id == job.id).with_for_update())
        started = [pool.submit(call) for call in calls]
        wait_until(lambda: num_waiting(store) == len(calls), "the calls to wait for the row")
        yield connection, started


def test_a_pause_that_meets_a_claim_pauses_the_worker(
    store: Store, open_again: Open, make_job: MakeJob, pool: ThreadPoolExecutor
) -> None:
    job, other = make_job(), open_again()
    with meanwhile(store, job, pool, lambda: other.jobs.pause(job.id)) as (connection, (paused,)):
        connection.execute(update(tables.jobs).where(_JOBS.id == job.id).values(status=Status.RUNNING))

    assert paused.result().status is Status.PAUSING  # type: ignore[attr-defined]


def test_a_resume_that_meets_the_end_of_its_pause_queues_the_job(
    store: Store,
    open_again: Open,
    make_job: MakeJob,
    claim: Claim,
    pool: ThreadPoolExecutor,
) -> None:
    job, other = make_job(), open_again()
    claim(job)
    store.jobs.pause(job.id)
    with meanwhile(store, job, pool, lambda: other.jobs.resume(job.id)) as (connection, (resumed,)):
        connection.execute(
            update(tables.jobs).where(_JOBS.id == job.id).values(status=Status.PAUSED, lease_token=None, worker=None)
        )

    assert resumed.result().status is Status.QUEUED  # type: ignore[attr-defined]


def test_two_servers_that_mend_a_job_at_once_mend_it_once(
    store: Store,
    open_again: Open,
    make_job: MakeJob,
    claim: Claim,
    pool: ThreadPoolExecutor,
) -> None:
    job, others = make_job(), [open_again(), open_again()]
    claim(job, lease_s=-1.0)
    calls = [other.recovery.expire_leases for other in others]
    with meanwhile(store, job, pool, *calls) as (_, mended):
        pass
    for one in mended:
        one.result()

    assert store.jobs.get(job.id).status is Status.QUEUED
    interrupted = Told.INTERRUPTED.format(cause="its lease ran out", step=0)
    assert messages(store, job).count(interrupted) == 1


def test_a_job_that_was_mended_and_claimed_anew_is_not_mended_again(
    store: Store,
    open_again: Open,
    make_job: MakeJob,
    claim: Claim,
    pool: ThreadPoolExecutor,
) -> None:
    job, other = make_job(), open_again()
    claim(job, lease_s=-1.0)
    with meanwhile(store, job, pool, other.recovery.expire_leases) as (connection, (mended,)):
        anew = {"lease_token": "new", "lease_expires_at": 4e9, "worker": "worker-2"}
        connection.execute(update(tables.jobs).where(_JOBS.id == job.id).values(anew))
    mended.result()

    assert store.attempts.status(Lease(job.id, "new")) is Status.RUNNING


def test_of_many_claims_at_once_one_has_the_job(open_again: Open, make_job: MakeJob, pool: ThreadPoolExecutor) -> None:
    job, others = make_job(), [open_again() for _ in range(4)]
    claims = list(pool.map(lambda other: other.attempts.claim(job.id, "worker", 60.0), others))

    assert sum(claim is not None for claim in claims) == 1


def test_servers_that_reserve_at_once_reserve_each_job_once_and_no_more_than_there_is_room(
    open_again: Open, make_job: MakeJob, pool: ThreadPoolExecutor
) -> None:
    jobs, others = [make_job().id for _ in range(6)], [open_again() for _ in range(4)]
    reserved = list(pool.map(lambda other: other.jobs.reserve(4, 60.0, []), others))

    assert sorted(job_id for one in reserved for job_id in one) == sorted(jobs[:4])


def test_a_save_that_meets_a_cancel_writes_nothing(
    store: Store,
    open_again: Open,
    make_job: MakeJob,
    claim: Claim,
    pool: ThreadPoolExecutor,
) -> None:
    job, other = make_job(), open_again()
    lease = claim(job)

    def save() -> None:
        other.attempts.record_steps(lease, 1, [step_telling(1)], 0)
        other.attempts.save(lease, make_state(1))

    with meanwhile(store, job, pool, save) as (connection, (saved,)):
        connection.execute(
            update(tables.jobs).where(_JOBS.id == job.id).values(status=Status.CANCELLED, lease_token=None)
        )

    with pytest.raises(LeaseLost):
        saved.result()
    assert store.jobs.list_states(job.id) == []
    assert store.jobs.list_metrics(job.id) == []


def test_each_delivery_is_given_to_one_server(
    store: Store, open_again: Open, make_job: MakeJob, pool: ThreadPoolExecutor
) -> None:
    own, others = store.of("proj_default"), [open_again() for _ in range(3)]
    own.webhooks.create("hook", "https://example.com", ["fine_tuning.job.cancelled"])
    for _ in range(12):
        store.jobs.cancel(make_job().id)

    claimed = list(pool.map(lambda other: other.webhooks.claim(1.0, 60.0, 12), others))

    given = [delivery.seq for deliveries in claimed for delivery in deliveries]
    assert len(given) == len(set(given)) == 12


def test_an_endpoint_is_not_deleted_under_what_is_told_to_it(
    store: Store, open_again: Open, make_job: MakeJob, pool: ThreadPoolExecutor
) -> None:
    job, other = make_job(), open_again()
    endpoint = store.of("proj_default").webhooks.create("hook", "https://example.com", ["fine_tuning.job.cancelled"])
    with store.database.write() as connection:
        announce(connection, job.id, job.project, "fine_tuning.job.cancelled")
        deleted = pool.submit(other.of("proj_default").webhooks.delete, endpoint.id)
        wait_until(lambda: num_waiting(other) == 1, "the deletion to wait")

    deleted.result()
    assert store.webhooks.claim(1.0, 60.0, 10) == []


def test_of_requests_with_one_key_at_once_none_fails(open_again: Open, pool: ThreadPoolExecutor) -> None:
    others = [open_again() for _ in range(4)]

    known = list(pool.map(lambda other: other.idempotency.claim("key", "POST /v1/files"), others))

    assert known == [None] * 4


def test_servers_that_start_at_once_make_the_tables_once(
    postgres: PostgresServer, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    url = postgres.new_database()
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()

    def start(_: int) -> list[object]:
        store = open_store(tmp_path, url)
        store.keys.adopt("acme")
        store.webhooks.configure([])
        projects = [project.organization for project in store.keys.projects()]
        store.close()
        return projects  # type: ignore[return-value]

    assert list(pool.map(start, range(4))) == [["acme"]] * 4


def test_keys_for_a_new_project_made_at_once_share_it(open_again: Open, pool: ThreadPoolExecutor) -> None:
    others = [open_again() for _ in range(4)]

    made = list(pool.map(lambda other: other.keys.create("k", organization="acme", project="new")[0].project, others))

    assert len(set(made)) == 1


@pytest.mark.parametrize("value", ["a\0b", "\0"])
def test_a_text_that_cannot_be_kept_is_the_requests_fault(store: Store, make_job: MakeJob, value: str) -> None:
    with pytest.raises(InvalidRequest, match="NUL"):
        make_job(suffix=value)
    with pytest.raises(InvalidRequest, match="NUL"):
        store.jobs.get(value)


def test_a_server_that_is_gone_is_told_as_unavailable_and_missed_no_longer_when_it_is_back(
    store: Store, make_job: MakeJob, postgres: PostgresServer
) -> None:
    job = make_job()
    postgres.stop()
    with pytest.raises(DatabaseUnavailable):
        store.jobs.get(job.id)
    with pytest.raises(DatabaseUnavailable):
        store.jobs.cancel(job.id)
    postgres.start()

    assert store.jobs.get(job.id) == job
    assert store.jobs.cancel(job.id).status is Status.CANCELLED


def test_who_is_stopped_in_the_middle_of_a_transaction_does_not_keep_its_locks(
    open_again: Open, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    other = open_again()
    monkeypatch.setattr(database, "OPTIONS", "-c idle_in_transaction_session_timeout=50ms")
    sleeper = open_again()

    def sleep() -> None:
        with sleeper.database.write() as connection:
            connection.execute(update(tables.jobs).where(_JOBS.id == job.id).values(step=1))
            other.jobs.cancel(job.id)

    with pytest.raises(DatabaseUnavailable):
        sleep()
    ended = other.jobs.get(job.id)
    assert (ended.status, ended.step) == (Status.CANCELLED, 0)


@pytest.mark.parametrize("url", ["mysql://here/name", "sqlite:///file", "not a url"])
def test_a_url_of_another_kind_is_refused_without_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"'database_url'.*postgresql://user:password@host"):
        open_store(tmp_path, url)


def test_a_missing_driver_is_named_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingsInvalid, match=r"pip install 'caesura\[postgres\]'"):
        open_store(tmp_path, "postgresql://here/name")


def test_a_commit_survives_a_power_cut(store: Store) -> None:
    with store.database.read() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == "on"
        assert connection.execute(text("SHOW transaction_isolation")).scalar_one() == "repeatable read"
    with store.database.write() as connection:
        assert connection.execute(text("SHOW transaction_isolation")).scalar_one() == "read committed"
        assert connection.execute(text("SHOW lock_timeout")).scalar_one() == "1min"
