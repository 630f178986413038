"""Section 4: requests a second, against a real server that holds a thousand jobs."""

from __future__ import annotations

import http.client
import json
import signal
import statistics
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import psutil
from openai import OpenAI

from benchmarks import report
from benchmarks.chats import make_chats, write_chats
from benchmarks.options import BATCH_SIZE, Options
from benchmarks.processes import say
from benchmarks.server import API_KEY, RunningServer, await_value, running_server
from caesura.ids import new_id
from caesura.jobs import Job, Status
from caesura.settings import EMBEDDED_BASE
from caesura.store import open_store

NUM_JOBS = 1000
PAGE = 20
NUM_CONNECTIONS = 4
#: Rows of the file of the jobs that are created, and of the job that trains.
NUM_SHORT_ROWS, NUM_LONG_ROWS = 10, 640
#: Epochs enough that the job does not end by itself.
HYPERPARAMETERS = {"n_epochs": 50, "batch_size": BATCH_SIZE, "learning_rate_multiplier": 1.0}
#: Nobody renews the lease of a worker that is stopped, and nobody shall take its slot.
LEASE_S = "3600"
TIMEOUT_S = 60.0
COLUMNS = ("request", "one connection: p50 ms", "p99 ms", f"{NUM_CONNECTIONS} connections: req/s", "p50 ms", "p99 ms")


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    method: str
    path: str
    body: str | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    per_s: float
    p50_ms: float
    p99_ms: float


def run(options: Options) -> str:
    num_jobs = NUM_JOBS // 10 if options.quick else NUM_JOBS
    seconds = 0.3 if options.quick else 2.0
    rows: list[tuple[str, ...]] = []
    with running_server(
        lambda data_dir: _fill(data_dir, num_jobs), threads=str(options.threads), warm_spare="false", lease_s=LEASE_S
    ) as server:
        job_id, small_file = _occupy_slot(server)
        worker = server.find("caesura.worker", job_id)
        assert worker is not None
        reads = (
            Call("GET a job", "GET", f"/fine_tuning/jobs/{job_id}"),
            Call(f"GET a page of {PAGE} jobs", "GET", f"/fine_tuning/jobs?limit={PAGE}"),
        )
        body = json.dumps({"model": EMBEDDED_BASE, "training_file": small_file})
        create = Call("POST a job", "POST", "/fine_tuning/jobs", body)
        for calls in (reads, (create,)):  # what is created would be in the way of the reads
            with _stopped(worker):
                rows += [_measure(server, call, "", seconds) for call in calls]
            rows += [_measure(server, call, ", beside a job in training", seconds) for call in calls]
    return _report(rows, num_jobs)


def _fill(data_dir: Path, num_jobs: int) -> None:
    """Jobs that have ended, straight into the store: what is measured is how the server lives with them."""
    store = open_store(data_dir)
    for number in range(num_jobs):
        job = Job(
            id=new_id("ftjob-"),
            created_at=int(time.time()),
            status=Status.VALIDATING_FILES,
            base=EMBEDDED_BASE,
            model_name=f"ft:{EMBEDDED_BASE}:benchmark::{number}",
            method={"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}},
            training_file="file-gone",
            training_blob="files/gone",
            seed=number,
            metadata={"number": str(number)},
        )
        store.jobs.create(job)
        store.jobs.cancel(job.id)
    store.close()


def _occupy_slot(server: RunningServer) -> tuple[str, str]:
    """Start a job that will not end by itself; returns its id, and the id of a small file for others."""
    client = server.client()
    job_id = client.fine_tuning.jobs.create(
        model=EMBEDDED_BASE,
        training_file=_upload(client, NUM_LONG_ROWS),
        method={"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}},
    ).id

    def trains() -> bool | None:
        events = client.fine_tuning.jobs.list_events(job_id, limit=5).data
        return True if any(event.type == "metrics" for event in events) else None

    await_value(trains, 0.1, TIMEOUT_S, "first step")
    return job_id, _upload(client, NUM_SHORT_ROWS)


def _upload(client: OpenAI, num_rows: int) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "chats.jsonl"
        write_chats(path, make_chats(num_rows))
        with path.open("rb") as file:
            return client.files.create(file=file, purpose="fine-tune").id


@contextmanager
def _stopped(worker: psutil.Process) -> Generator[None, None, None]:
    """Within it the worker holds its slot and computes nothing."""
    worker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.send_signal(signal.SIGCONT)


def _measure(server: RunningServer, call: Call, beside: str, seconds: float) -> tuple[str, ...]:
    alone = load(server, call, 1, seconds)
    together = load(server, call, NUM_CONNECTIONS, seconds)
    say(f"{call.name}{beside}: {together.per_s:.0f}/s")
    return (
        call.name + beside,
        report.number(alone.p50_ms, 1),
        report.number(alone.p99_ms, 1),
        report.number(together.per_s),
        report.number(together.p50_ms, 1),
        report.number(together.p99_ms, 1),
    )


def load(server: RunningServer, call: Call, num_connections: int, seconds: float) -> Rate:
    """Send the call over and over, by so many threads with a kept connection each."""
    began = time.perf_counter()
    with ThreadPoolExecutor(num_connections) as threads:
        sending = [threads.submit(_send, server.url, call, began + seconds) for _ in range(num_connections)]
        latencies_s = [latency_s for sent in sending for latency_s in sent.result()]
    wall_s = time.perf_counter() - began
    percentiles = statistics.quantiles(latencies_s, n=100, method="inclusive")
    return Rate(len(latencies_s) / wall_s, percentiles[49] * 1e3, percentiles[98] * 1e3)


def _send(url: str, call: Call, end: float) -> list[float]:
    """Seconds of each answer, until `end`."""
    latencies_s: list[float] = []
    address = urlsplit(url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=TIMEOUT_S)
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    while True:
        began = time.perf_counter()
        if began >= end:
            break
        connection.request(call.method, address.path + call.path, call.body, headers)
        response = connection.getresponse()
        text = response.read()
        if response.status != http.client.OK:
            raise RuntimeError(f"{call.method} {call.path} was answered with {response.status}: {text[:200]!r}")
        latencies_s.append(time.perf_counter() - began)
    connection.close()
    return latencies_s


def _report(rows: list[tuple[str, ...]], num_jobs: int) -> str:
    explained = (
        f"One server with {num_jobs:,} jobs that have ended, and one slot. Its slot is held by a job whose worker is "
        "stopped by a signal, so that nothing computes beside the API, or trains (`beside a job in training`). "
        "Created jobs are validated by the same server while it answers, and wait in the queue. The requests come "
        "over loopback from threads of one Python process, each with a connection of its own, and take CPU time from "
        "the same cores: the rates are a lower bound."
    )
    return report.section("Rates of the API", report.table(COLUMNS, rows), explained)
