"""Section 11: very many small jobs on two servers over one PostgreSQL, and all that can happen to them on the way."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import psutil
from openai import OpenAI
from sqlalchemy import select

from benchmarks import report
from benchmarks.chats import make_chats, write_chats
from benchmarks.options import Options
from benchmarks.processes import say
from benchmarks.server import API_KEY, TimedOut, launch_server, stop_server
from caesura.jobs import FINAL, Status
from caesura.scheduler import sweep
from caesura.settings import EMBEDDED_BASE
from caesura.storage import LocalStorage, get_files
from caesura.store import Store, open_store, tables
from tests.postgres import ABSENT, find_binaries, running_postgres

NUM_JOBS, NUM_SERVERS, NUM_SLOTS = 200, 2, 3
NUM_ROWS, BATCH_SIZE, NUM_EPOCHS = 24, 4, 2
NUM_STEPS = NUM_ROWS * NUM_EPOCHS // BATCH_SIZE
#: Jobs of a seed come to the same bytes.
SEEDS = (1, 2, 3, 4)
MAX_S = 1200.0
LOOK_S = 0.05
#: Between two servers' deaths, the time that a job stays paused, that a worker stays stopped: past its lease.
SERVER_LIFE_S, PAUSED_S, STOPPED_S, LEASE_S = 45.0, 0.5, 5.0, 3.0
#: How likely a job is to meet each.
CHANCES = {"pause": 0.25, "kill": 0.25, "stop": 0.05, "cancel": 0.15}
COLUMNS = ("what", "how often")
_JOBS = tables.jobs.c


@dataclass(slots=True)
class Fate:
    """What is to happen to a job, each at a step, the earliest last."""

    seed: int
    deeds: list[tuple[int, str]]
    #: It was cancelled, and not refused.
    is_cancelled: bool = False


@dataclass(slots=True)
class Running:
    """The servers, and what was done to them and to the jobs."""

    store: Store
    data_dir: Path
    settings: dict[str, str]
    servers: list[tuple[Any, OpenAI]] = field(default_factory=list[tuple[Any, OpenAI]])
    done: Counter[str] = field(default_factory=Counter[str])
    #: Workers that are stopped → when they go on.
    stopped: dict[psutil.Process, float] = field(default_factory=dict[psutil.Process, float])

    def launch(self) -> None:
        process, url = launch_server(self.data_dir, self.settings)
        self.servers.append((process, OpenAI(base_url=url, api_key=API_KEY, max_retries=0, timeout=60.0)))

    def kill_server(self, number: int) -> None:
        process, client = self.servers.pop(number)
        process.kill()
        process.wait()
        client.close()
        self.done["SIGKILL of a server"] += 1
        self.launch()

    def client(self, draw: random.Random) -> OpenAI:
        return draw.choice(self.servers)[1]


def run(options: Options) -> str:
    binaries = find_binaries()
    if binaries is None:
        return report.section("Soak", f"Not run: {ABSENT}.")
    num_jobs = 10 if options.quick else NUM_JOBS
    draw = random.Random(0)
    began = time.monotonic()
    with running_postgres(binaries) as postgres, _running(postgres.new_database()) as running:
        file_id = _upload(running, draw)
        expected = {seed: _undisturbed(running, file_id, seed) for seed in SEEDS}
        say(f"undisturbed in {time.monotonic() - began:.0f} s")
        fates = {_create(running.client(draw), file_id, fate): fate for fate in _draw_fates(draw, num_jobs)}
        _go_on(running, fates, draw, began)
        seconds = time.monotonic() - began
        _stop(running)
        faults = _check(running, fates, expected)
        return _report(running, fates, faults, seconds)


@contextmanager
def _running(url: str) -> Generator[Running, None, None]:
    folder = Path(tempfile.mkdtemp(prefix="caesura-soak-"))
    settings = {
        "database_url": url,
        "slots": str(NUM_SLOTS),
        "threads": "1",
        "warm_spare": "false",
        "lease_s": str(LEASE_S),
        "save_interval_s": "0.2",
    }
    with ExitStack() as opened:
        opened.callback(shutil.rmtree, folder)
        store = open_store(folder, url)
        opened.callback(store.close)
        running = Running(store, folder, settings)
        opened.callback(_kill_all, folder)
        for _ in range(NUM_SERVERS):
            running.launch()
        yield running


def _upload(running: Running, draw: random.Random) -> str:
    path = running.data_dir / "chats.jsonl"
    write_chats(path, make_chats(NUM_ROWS))
    with path.open("rb") as file:
        return running.client(draw).files.create(file=file, purpose="fine-tune").id


def _create(client: OpenAI, file_id: str, fate: Fate) -> str:
    hyperparameters = {"batch_size": BATCH_SIZE, "n_epochs": NUM_EPOCHS}
    job = client.fine_tuning.jobs.create(
        model=EMBEDDED_BASE,
        training_file=file_id,
        seed=fate.seed,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},  # type: ignore[typeddict-item]
    )
    return job.id


def _undisturbed(running: Running, file_id: str, seed: int) -> str:
    job_id = _create(running.servers[0][1], file_id, Fate(seed, []))
    give_up_at = time.monotonic() + MAX_S
    while running.store.jobs.get(job_id).status not in FINAL:
        if time.monotonic() > give_up_at:
            raise TimedOut("the undisturbed job did not end")
        time.sleep(LOOK_S)
    return _bytes_of(running, job_id)


def _draw_fates(draw: random.Random, num_jobs: int) -> list[Fate]:
    fates: list[Fate] = []
    for _ in range(num_jobs):
        chosen = [name for name, chance in CHANCES.items() if draw.random() < chance]
        deeds = sorted(((draw.randrange(NUM_STEPS), name) for name in chosen), reverse=True)
        fates.append(Fate(draw.choice(SEEDS), deeds))
    return fates


def _go_on(running: Running, fates: dict[str, Fate], draw: random.Random, began: float) -> None:
    """Until every job has ended. Raises TimedOut."""
    query = select(_JOBS.id, _JOBS.status, _JOBS.step, _JOBS.worker, _JOBS.stalled_attempts)
    paused: dict[str, float] = {}
    kill_at = told_at = time.monotonic()
    while True:
        now = time.monotonic()
        with running.store.database.read() as connection:
            rows = [row for row in connection.execute(query.where(_JOBS.status.not_in(FINAL))) if row.id in fates]
        if not rows:
            return
        if now > began + MAX_S:
            raise TimedOut(f"{len(rows)} jobs did not end within {MAX_S:.0f} s")
        if now > told_at + 30:
            told_at = now
            say(f"{now - began:.0f} s: {len(rows)} of {len(fates)} jobs are left")
        for row in rows:
            if row.status == Status.PAUSED and now > paused.setdefault(row.id, now) + PAUSED_S:
                del paused[row.id]
                _ask(running, draw, "a resume", lambda jobs, id=row.id: jobs.resume(id))
            _disturb(running, row, fates[row.id], draw)
        for worker, until in list(running.stopped.items()):
            if now > until:
                del running.stopped[worker]
                with suppress(psutil.NoSuchProcess):
                    worker.send_signal(signal.SIGCONT)
        if now > kill_at + SERVER_LIFE_S:
            kill_at = now
            running.kill_server(draw.randrange(NUM_SERVERS))
        time.sleep(LOOK_S)


def _disturb(running: Running, row: Any, fate: Fate, draw: random.Random) -> None:
    if not fate.deeds or row.step < fate.deeds[-1][0] or row.status not in (Status.RUNNING, Status.QUEUED):
        return
    step, name = fate.deeds[-1]
    if name == "cancel":
        fate.deeds.pop()
        fate.is_cancelled = _ask(running, draw, "a cancel", lambda jobs: jobs.cancel(row.id))
    elif name == "pause":
        fate.deeds.pop()
        _ask(running, draw, "a pause", lambda jobs: jobs.pause(row.id))
    elif row.status == Status.RUNNING and row.stalled_attempts == 0 and row.step > step:
        # One that has done a step: three deaths without any would fail the job, and rightly.
        worker = _find_worker(row.worker)
        if worker is None:
            return
        fate.deeds.pop()
        with suppress(psutil.NoSuchProcess):
            worker.send_signal(signal.SIGKILL if name == "kill" else signal.SIGSTOP)
            running.done[f"SIG{name.upper()} of a worker"] += 1
            if name == "stop":
                running.stopped[worker] = time.monotonic() + STOPPED_S


def _ask(running: Running, draw: random.Random, what: str, call: Callable[[Any], object]) -> bool:
    """False where the job had ended a moment before."""
    try:
        call(running.client(draw).fine_tuning.jobs)
    except openai.BadRequestError:
        running.done[f"{what} that came too late"] += 1
        return False
    running.done[what] += 1
    return True


def _find_worker(name: str) -> psutil.Process | None:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if name in process.cmdline():
                return process
    return None


def _stop(running: Running) -> None:
    for process, client in running.servers:
        client.close()
        stop_server(process)
    running.servers.clear()


def _kill_all(data_dir: Path) -> None:
    for process in _processes_in(data_dir):
        process.kill()


def _bytes_of(running: Running, job_id: str) -> str:
    """The SHA-256 of the job's adapter."""
    model = running.store.models.find(running.store.jobs.get(job_id).model_name)
    assert model is not None, f"job {job_id} has no model"
    files = get_files(LocalStorage(running.data_dir / "blobs"), model.adapter)
    return hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()


def _check(running: Running, fates: dict[str, Fate], expected: dict[int, str]) -> Counter[str]:
    """What is not as it was asked for, how often each; and what the sweep had to do."""
    faults: Counter[str] = Counter()
    for job_id, fate in fates.items():
        job = running.store.jobs.get(job_id)
        asked = Status.CANCELLED if fate.is_cancelled else Status.SUCCEEDED
        faults["jobs that did not end as asked"] += job.status is not asked
        steps = [metrics["step"] for metrics in running.store.jobs.list_metrics(job_id)]
        faults["jobs with a step told twice or never"] += steps != list(range(1, len(steps) + 1))
        if job.status is Status.SUCCEEDED:
            faults["jobs with other bytes than undisturbed"] += _bytes_of(running, job_id) != expected[fate.seed]
            faults["jobs with a step told twice or never"] += len(steps) != NUM_STEPS
    storage = LocalStorage(running.data_dir / "blobs")
    running.done["blobs that crashes left, swept"] = sweep(running.store, storage, grace_s=-1.0)
    left, named = {key for key, _ in storage.list()}, running.store.recovery.referenced_blobs()
    faults["blobs without a row after the sweep"] += len(left - named)
    faults["rows without their blob"] += len(named - left)
    with running.store.database.read() as connection:
        states = connection.execute(select(tables.states.c.seq)).all()
    faults["training states of ended jobs"] += len(states)
    # A worker whose server was killed has nobody who waits for its end, which comes a moment after its job's.
    _, left_over = psutil.wait_procs(list(_processes_in(running.data_dir)), timeout=10)
    for process in left_over:
        say(f"left: {' '.join(process.cmdline())}")
    faults["processes left"] += len(left_over)
    return faults


def _processes_in(data_dir: Path) -> Generator[psutil.Process, None, None]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_there = process.status() != psutil.STATUS_ZOMBIE
            if is_there and process.environ().get("CAESURA_DATA_DIR") == str(data_dir):
                yield process


def _report(running: Running, fates: dict[str, Fate], faults: Counter[str], seconds: float) -> str:
    ends = Counter(running.store.jobs.get(job_id).status for job_id in fates)
    attempts = sum(running.store.jobs.get(job_id).attempt for job_id in fates)
    met = [("jobs", len(fates)), *((f"jobs {status}", number) for status, number in sorted(ends.items()))]
    met += [("attempts", attempts), *sorted(running.done.items())]
    return report.section(
        "Soak",
        report.table(COLUMNS, [(name, f"{number:,}") for name, number in met]),
        report.table(("fault", "how often"), [(name, str(number)) for name, number in sorted(faults.items())]),
        f"{len(fates)} jobs of {NUM_STEPS} steps (the embedded base, one thread) on {NUM_SERVERS} servers over one "
        f"PostgreSQL and one folder, {NUM_SLOTS} slots, a lease of {LEASE_S:.0f} s: {seconds:.0f} s, the "
        f"{len(SEEDS)} undisturbed jobs that they are compared with included. Every {SERVER_LIFE_S:.0f} s a server was "
        "killed and started again; what happened to the jobs was drawn.",
        report.bar("every job ended as asked, with the bytes of an undisturbed one", not faults.total()),
        report.bar(f"within {MAX_S / 60:.0f} minutes", seconds < MAX_S),
    )
