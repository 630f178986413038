"""Section 9: a server that holds very many jobs and events, under load from other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from sqlalchemy import Table, insert, select

from benchmarks import report
from benchmarks.chats import make_chats, write_chats
from benchmarks.options import Options
from benchmarks.processes import environment, run_program, say
from benchmarks.server import API_KEY, RunningServer, await_value, memory_mib, running_server
from caesura.jobs import Job, Status
from caesura.settings import EMBEDDED_BASE
from caesura.store import open_store, tables

NUM_JOBS, NUM_EVENTS = 100_000, 1_000_000
UPLOAD_BYTES = 512_000_000
#: Half of all events are one job's, so that there is a list to go deep into.
DEEP_SHARE = 2
PAGE = 20
NUM_CONNECTIONS = 8
#: What one measurement may take.
MAX_SECONDS, MAX_REQUESTS = 60.0, 200_000
TIMEOUT_S = 120.0
GET_BAR, GET_P99_BAR_MS, POST_BAR, PAGE_BAR_MS, UPLOAD_BAR, MEMORY_BAR_MIB = 2000, 20.0, 300, 10.0, 200, 100
#: Jobs that are asked for, in no order.
NUM_ASKED = 1000
NUM_PAGES = 200

COLUMNS = ("request", "connections", "a second", "p50 ms", "p99 ms", "limit a second", "share")
PAGE_COLUMNS = ("page", "first: p50 ms", "p99 ms", "middle: p50 ms", "p99 ms", "last: p50 ms", "p99 ms")


@dataclass(frozen=True, slots=True)
class Limits:
    requests_per_s: float
    commits_per_s: float
    hashed_mb_per_s: float
    written_mb_per_s: float


@dataclass(frozen=True, slots=True)
class Rate:
    num: int
    per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Upload:
    mb_per_s: float
    growth_mib: float


@dataclass(frozen=True, slots=True)
class Held:
    """What the server was given: ids of jobs to ask for, the one with the long list, and cursors into the lists."""

    asked: list[str]
    deep: str
    #: Path → what to put behind `after=` at the first, the middle and the last page.
    cursors: dict[str, list[str | None]]


def run(options: Options) -> str:
    scale = 100 if options.quick else 1
    seconds = 0.5 if options.quick else 10.0
    num_bytes = UPLOAD_BYTES // scale
    limits = _limits(seconds, num_bytes)
    held: list[Held] = []
    began = time.perf_counter()

    def prepare(data_dir: Path) -> None:
        held.append(_fill(data_dir, NUM_JOBS // scale, NUM_EVENTS // scale))
        os.sync()  # the disk would still be writing it while the first numbers are taken
        say(f"filled in {time.perf_counter() - began:.0f} s")

    with running_server(prepare, warm_spare="false", max_file_bytes=str(2**30)) as server:
        (known,) = held
        upload = _upload(server, num_bytes)
        say(f"upload: {upload.mb_per_s:.0f} MB/s")
        one, many = (_get(server, known, number, seconds) for number in (1, NUM_CONNECTIONS))
        say(f"GET: {many.per_s:.0f}/s")
        pages = {path: _pages(server, path, cursors) for path, cursors in known.cursors.items()}
        created, validated_s = _post(server, seconds)
        say(f"POST: {created.per_s:.0f}/s")
    return _report(limits, upload, (one, many), pages, created, validated_s, (NUM_JOBS // scale, NUM_EVENTS // scale))


def _limits(seconds: float, num_bytes: int) -> Limits:
    found = run_program("load_limits", {"seconds": min(2.0, seconds), "num_bytes": num_bytes})
    with _empty_server() as port:
        rate = _load("127.0.0.1", port, ["/"], NUM_CONNECTIONS, min(3.0, seconds))
    return Limits(rate.per_s, **found)


@contextmanager
def _empty_server() -> Generator[int, None, None]:
    command = [sys.executable, "-m", "benchmarks.programs.empty_server"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def _fill(data_dir: Path, num_jobs: int, num_events: int) -> Held:
    """Jobs that have ended, straight into the store, and one that holds the only slot for as long as all this takes."""
    store = open_store(data_dir)
    ids = [f"ftjob-{number:024d}" for number in range(num_jobs)]
    deep = ids[num_jobs // 2]
    per_job = max(1, num_events * (DEEP_SHARE - 1) // DEEP_SHARE // num_jobs)
    owners = (job_id for job_id in ids for _ in range(num_events // DEEP_SHARE if job_id == deep else per_job))
    _write(store.database.write, tables.jobs, (_job(id, number) for number, id in enumerate(ids)))
    _write(store.database.write, tables.events, (_event(id, number) for number, id in enumerate(owners)))
    with store.database.read() as connection:
        events = select(tables.events.c.id).where(tables.events.c.job_id == deep).order_by(tables.events.c.seq.desc())
        event_ids = list(connection.execute(events).scalars())
    store.close()
    jobs, listed = "/fine_tuning/jobs", ids[::-1]
    cursors = {jobs: _cursors(listed), f"{jobs}/{deep}/events": _cursors(event_ids)}
    return Held(ids[:: max(1, num_jobs // NUM_ASKED)], deep, cursors)


def _cursors(ids: list[str]) -> list[str | None]:
    return [None, ids[len(ids) // 2], ids[-PAGE - 1]]


def _write(write: Any, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    while some := list(islice(rows, 20_000)):
        with write() as connection:
            connection.execute(insert(table), some)


def _job(id: str, number: int) -> dict[str, Any]:
    is_running = number == 0
    job = Job(
        id=id,
        created_at=int(time.time()),
        status=Status.RUNNING if is_running else Status.SUCCEEDED,
        base=EMBEDDED_BASE,
        model_name=f"ft:{EMBEDDED_BASE}:benchmark::{number}",
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"), 1)},
        },
        training_file="file-gone",
        training_blob="files/gone",
        seed=number,
        metadata={"number": str(number)},
    )
    lease = {"worker": "benchmark", "lease_token": "none", "lease_expires_at": time.time() + 86_400}
    return asdict(job) | (lease if is_running else dict.fromkeys(lease))


def _event(job_id: str, number: int) -> dict[str, Any]:
    data = {"step": number, "total_steps": NUM_EVENTS, "train_loss": 1.25, "valid_loss": None}
    message = f"Step {number}/{NUM_EVENTS}: training loss=1.25"
    return {
        "id": f"ftevent-{number:024d}",
        "job_id": job_id,
        "created_at": 1_700_000_000,
        "level": "info",
        "message": message,
        "type": "metrics",
        "data": data,
        "key": f"step:{number}",
    }


def _load(
    host: str,
    port: int,
    paths: list[str],
    num_connections: int,
    seconds: float,
    *,
    method: str = "GET",
    body: str = "",
    max_requests: int = MAX_REQUESTS,
) -> Rate:
    assert seconds <= MAX_SECONDS
    asked = {
        "host": host,
        "port": port,
        "method": method,
        "paths": paths,
        "api_key": API_KEY,
        "body": body,
        "num_connections": num_connections,
        "seconds": seconds,
        "max_requests": max_requests,
    }
    return Rate(**run_program("load_calls", asked))


def _ask(server: RunningServer, paths: list[str], num_connections: int, seconds: float, **more: Any) -> Rate:
    address = urlsplit(server.url)
    assert address.hostname is not None
    assert address.port is not None
    under = [address.path + path for path in paths]
    return _load(address.hostname, address.port, under, num_connections, seconds, **more)


def _get(server: RunningServer, held: Held, num_connections: int, seconds: float) -> Rate:
    return _ask(server, [f"/fine_tuning/jobs/{job_id}" for job_id in held.asked], num_connections, seconds)


def _pages(server: RunningServer, path: str, cursors: list[str | None]) -> list[Rate]:
    rates: list[Rate] = []
    for cursor in cursors:
        after = "" if cursor is None else f"&after={cursor}"
        rates.append(_ask(server, [f"{path}?limit={PAGE}{after}"], 1, MAX_SECONDS, max_requests=NUM_PAGES))
    return rates


def _post(server: RunningServer, seconds: float) -> tuple[Rate, float]:
    """The rate, and the seconds from its end until the scheduler has validated all that was created."""
    client = server.client()
    path = server.data_dir / "small.jsonl"
    write_chats(path, make_chats(10))
    with path.open("rb") as file:
        file_id = client.files.create(file=file, purpose="fine-tune").id
    body = json.dumps({"model": EMBEDDED_BASE, "training_file": file_id})
    rate = _ask(server, ["/fine_tuning/jobs"], NUM_CONNECTIONS, seconds, method="POST", body=body)
    ended = time.perf_counter()
    newest = client.fine_tuning.jobs.list(limit=1).data[0].id

    def is_validated() -> bool | None:
        return None if client.fine_tuning.jobs.retrieve(newest).status == Status.VALIDATING_FILES else True

    await_value(is_validated, 0.05, TIMEOUT_S, "validation of the last job")
    return rate, time.perf_counter() - ended


def _upload(server: RunningServer, num_bytes: int) -> Upload:
    process = psutil.Process(server.process.pid)
    before, _ = memory_mib(process)
    most, over = [before], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            most[0] = max(most[0], memory_mib(process)[0])

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        address = urlsplit(server.url)
        asked = {
            "host": address.hostname,
            "port": address.port,
            "path": f"{address.path}/files",
            "api_key": API_KEY,
            "num_bytes": num_bytes,
        }
        sent = run_program("load_upload", asked)
    finally:
        over.set()
        watching.join()
    return Upload(sent["num_bytes"] / 1e6 / sent["seconds"], most[0] - before)


def _report(
    limits: Limits,
    upload: Upload,
    gets: tuple[Rate, Rate],
    pages: dict[str, list[Rate]],
    created: Rate,
    validated_s: float,
    held: tuple[int, int],
) -> str:
    one, many = gets
    upload_limit = min(limits.hashed_mb_per_s, limits.written_mb_per_s)
    rows = [
        _row("GET a job", 1, one, limits.requests_per_s),
        _row("GET a job", NUM_CONNECTIONS, many, limits.requests_per_s),
        _row("POST a job", NUM_CONNECTIONS, created, limits.commits_per_s),
    ]
    names = ("jobs", "events of one job")
    page_rows = [
        (name, *(report.number(value, 1) for rate in rates for value in (rate.p50_ms, rate.p99_ms)))
        for name, rates in zip(names, pages.values(), strict=True)
    ]
    slowest = max(rate.p50_ms for rates in pages.values() for rate in rates)
    bars = (
        report.bar(f"GET job: at least {GET_BAR:,}/s", many.per_s >= GET_BAR),
        report.bar(f"GET job: p99 below {GET_P99_BAR_MS:.0f} ms", many.p99_ms < GET_P99_BAR_MS),
        report.bar(f"POST job: at least {POST_BAR}/s", created.per_s >= POST_BAR),
        report.bar(f"every page in less than {PAGE_BAR_MS:.0f} ms (median)", slowest < PAGE_BAR_MS),
        report.bar(f"an upload of {UPLOAD_BYTES / 1e6:.0f} MB at {UPLOAD_BAR} MB/s", upload.mb_per_s >= UPLOAD_BAR),
        report.bar(
            f"the server's memory grows by less than {MEMORY_BAR_MIB} MiB meanwhile", upload.growth_mib < MEMORY_BAR_MIB
        ),
    )
    return report.section(
        "Load",
        report.table(COLUMNS, rows),
        report.table(PAGE_COLUMNS, page_rows),
        f"Upload: {upload.mb_per_s:.0f} MB/s, {upload.mb_per_s / upload_limit:.0%} of the slower of SHA-256 "
        f"({limits.hashed_mb_per_s:.0f} MB/s) and the disk ({limits.written_mb_per_s:.0f} MB/s with its sync); the "
        f"server's memory grew by {upload.growth_mib:.0f} MiB.",
        _explained(limits, created, validated_s, held),
        "\n".join(bars),
    )


def _row(name: str, num_connections: int, rate: Rate, limit: float) -> tuple[str, ...]:
    return (
        name,
        str(num_connections),
        report.number(rate.per_s),
        report.number(rate.p50_ms, 2),
        report.number(rate.p99_ms, 2),
        report.number(limit),
        f"{rate.per_s / limit:.0%}",
    )


def _explained(limits: Limits, created: Rate, validated_s: float, held: tuple[int, int]) -> str:
    num_jobs, num_events = held
    return (
        f"One server (`caesura serve`) with {num_jobs:,} jobs and {num_events:,} events, half of them one job's, "
        "written straight into its store. Its slot is held by a job that nobody works at, so no worker computes. The "
        "requests come over loopback and kept connections from another process, which shares the machine's cores with "
        f"the server. The limit of a GET is an empty application under uvicorn ({limits.requests_per_s:,.0f}/s), asked "
        f"by the same program; that of a POST is SQLite's synced commits, one writer ({limits.commits_per_s:,.0f}/s). "
        f"The scheduler was on: it validated the {created.num:,} created jobs while they came (ten rows each), "
        f"many by one commit, and was done {validated_s:.1f} s after the last."
    )
