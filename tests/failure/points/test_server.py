"""A server is killed at every place of a job's way through it, and the next one brings the job to the same bytes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import pytest

from caesura import scheduler
from caesura.executors import WorkerExit
from caesura.jobs import FINAL, Job, Status
from caesura.scheduler import Scheduler
from tests.failure.points import nursery
from tests.failure.points.changes import SetClock, sweep_often
from tests.failure.points.conftest import MakeBench, Survived
from tests.failure.points.harness import Bench, stop_outside_a_transaction
from tests.failure.points.nursery import KEY, Orders
from tests.world import wait_until


class Servers:
    """Servers on one data folder, and a client that goes to the newest of them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.children: list[BaseProcess] = []
        self.urls: list[str] = []

    def start(self, fault: str = "", *before: Callable[[], None]) -> None:
        log_file = self.bench.folder / f"server-{len(self.children)}.log"
        child = nursery.start(nursery.serve, Orders(self.bench.world.settings, log_file, fault, before))
        self.children.append(child)

        def found() -> list[str]:
            return re.findall(r"Caesura is ready at (\S+)", log_file.read_text() if log_file.exists() else "")

        wait_until(lambda: bool(found()) or not child.is_alive(), "the server to be ready")
        # One that died before it was ready is replaced like one that died later.
        self.urls.append(found()[0] if found() else "http://127.0.0.1:9")

    @property
    def newest(self) -> BaseProcess:
        return self.children[-1]

    def send(self, method: str, path: str, key: str = "", **values: Any) -> dict[str, Any]:
        """Send until it is answered; a server that was killed is replaced by one that is not armed."""
        headers = {"authorization": f"Bearer {KEY}", **({"idempotency-key": key} if key else {})}
        while True:
            try:
                answer = httpx.request(method, self.urls[-1] + path, headers=headers, timeout=30, **values)
            except httpx.TransportError:
                self.replace()
                continue
            if answer.status_code == 400 and answer.json()["error"]["code"] == "idempotency_key_interrupted":
                return self._find_made(method, path, key, **values)
            assert answer.status_code == 200, answer.text
            return answer.json()

    def _find_made(self, method: str, path: str, key: str, **values: Any) -> dict[str, Any]:
        """As the answer says: look at the list. A part, which has none, is sent again, and the first is left out."""
        if path.endswith("/parts"):
            return self.send(method, path, key + "-again", **values)
        if path.endswith("/pause"):
            return self.send("GET", path.removesuffix("/pause"))
        newest = self.send("GET", "/files" if path.endswith("/complete") else path)["data"][0]
        return {"file": newest} if path.endswith("/complete") else newest

    def replace(self) -> None:
        self.newest.join(60)
        assert self.newest.exitcode == -signal.SIGKILL
        # The workers of the dead server write on: only what is surely nobody's may be missing, so no sweep here.
        self.start()

    def upload(self, rows: list[dict[str, Any]]) -> str:
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        files = {"file": ("rows.jsonl", data)}
        return self.send("POST", "/files", "file", files=files, data={"purpose": "fine-tune"})["id"]

    def upload_in_parts(self, rows: list[dict[str, Any]]) -> str:
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        body = {"bytes": len(data), "filename": "rows.jsonl", "mime_type": "text/plain", "purpose": "fine-tune"}
        upload = self.send("POST", "/uploads", "upload", json=body)["id"]
        middle = len(data) // 2
        parts = [
            self.send("POST", f"/uploads/{upload}/parts", f"part-{number}", files={"data": part})["id"]
            for number, part in enumerate((data[:middle], data[middle:]))
        ]
        done = self.send("POST", f"/uploads/{upload}/complete", "complete", json={"part_ids": parts})
        return done["file"]["id"]

    def create_job(self) -> str:
        training, validation = self.bench.rows()
        body = {
            "model": "micro",
            "training_file": self.upload(training),
            "validation_file": self.upload_in_parts(validation),
            "seed": 7,
            "method": {
                "type": "supervised",
                "supervised": {
                    "hyperparameters": {"batch_size": 4, "n_epochs": 2, "learning_rate_multiplier": 3.0},
                },
            },
        }
        return self.send("POST", "/fine_tuning/jobs", "job", json=body)["id"]

    def status(self, job: str) -> str:
        return self.send("GET", f"/fine_tuning/jobs/{job}")["status"]

    def finish(self, job: str) -> Job:
        wait_until(lambda: self.status(job) in FINAL, "the job's end")
        return self.bench.world.store.jobs.get(job)

    def close(self) -> None:
        for child in self.children:
            if child.is_alive():
                child.terminate()
        for child in self.children:
            child.join(20)
            if child.is_alive():
                child.kill()
            child.join()


@pytest.fixture
def servers(make_bench: MakeBench) -> Iterator[Servers]:
    servers = Servers(make_bench(lease_s=2.0, warm_spare=False))
    yield servers
    servers.close()


#: Where the server is killed on the way from the upload to the queue and a worker.
WAY = [
    *["upload.half:1", "upload.stored:1", "upload.made:1"],
    *["part.stored:1", "part.made:2", "parts.joined:1", "upload.completed:1"],
    *["blob.half:1", "blob.linked:2", "blob.synced:4", "rows.committed:4"],
    *["job.checked:1", "job.made:1", "files.validated:1", "files.told:1", "launching:1", "launched:1"],
    *["tick.begun:2", "tick.mended:3"],
]


@pytest.mark.parametrize("at", WAY)
def test_a_server_killed_on_the_way_of_a_job(servers: Servers, survived: Survived, at: str) -> None:
    name, number = at.split(":")
    servers.start(f"{name}:kill:{number}")
    job = servers.finish(servers.create_job())
    servers.children[0].join(60)  # a slow machine comes to its ticks late
    assert servers.children[0].exitcode == -signal.SIGKILL
    assert len(servers.bench.world.store.jobs.list(after=None, limit=10, metadata=None)[0]) == 1

    survived(servers.bench, job, f"{at} (server)", "SIGKILL, request sent again")


@pytest.mark.parametrize("at", ["pause.asked:1", "resume.asked:1"])
def test_a_server_killed_while_it_pauses_or_resumes(servers: Servers, survived: Survived, at: str) -> None:
    name, number = at.split(":")
    servers.start(f"{name}:kill:{number}")
    id = servers.create_job()
    servers.send("POST", f"/fine_tuning/jobs/{id}/pause", "pause")
    wait_until(lambda: servers.status(id) == "paused", "the job to be paused")
    if name == "resume.asked":
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{servers.urls[-1]}/fine_tuning/jobs/{id}/resume", headers={"authorization": f"Bearer {KEY}"})
        servers.replace()
    else:
        servers.send("POST", f"/fine_tuning/jobs/{id}/resume", "resume")
    job = servers.finish(id)
    assert servers.children[0].exitcode == -signal.SIGKILL

    survived(servers.bench, job, f"{at} (server)", "SIGKILL, next server")


def test_a_server_killed_while_it_cancels_has_cancelled(servers: Servers) -> None:
    servers.start("cancel.asked:kill:1")
    id = servers.create_job()
    with pytest.raises(httpx.TransportError):
        httpx.post(f"{servers.urls[-1]}/fine_tuning/jobs/{id}/cancel", headers={"authorization": f"Bearer {KEY}"})
    servers.replace()
    assert servers.status(id) == "cancelled"


class NoExecutor:
    """Starts nothing, and holds nothing."""

    def start(self, _job_id: str) -> str:
        return "nobody"

    def tick(self) -> list[WorkerExit]:
        return []

    def close(self) -> None:
        pass


@pytest.mark.parametrize("at", ["sweep.listed:2", "sweep.deleted:1"])
def test_a_server_killed_in_its_sweep(servers: Servers, survived: Survived, at: str) -> None:
    name, number = at.split(":")
    orphan = servers.bench.world.upload(b"nobody's\n")
    servers.start(f"{name}:kill:{number}", sweep_often)
    if servers.newest.is_alive() and name == "sweep.deleted":
        servers.newest.join(60)
    job = servers.finish(servers.create_job())
    assert servers.children[0].exitcode == -signal.SIGKILL

    survived(servers.bench, job, f"{at} (server)", "SIGKILL, next server")
    assert not (servers.bench.world.settings.data_dir / "blobs" / orphan).exists()


def test_everything_killed_at_once(servers: Servers, survived: Survived) -> None:
    bench = servers.bench
    job = bench.create_job()
    worker = bench.start(job, "step.recorded:stop:4")  # of a server that is gone: only its lease tells of it
    stop_outside_a_transaction(worker, bench.world)
    servers.start()
    for process in (servers.newest, worker):
        process.kill()
        process.join()
    servers.start()
    job = servers.finish(job.id)

    assert any("its lease ran out" in message for message in bench.world.messages(job))
    survived(bench, job, "step.recorded:4", "SIGKILL of server and worker")


@pytest.mark.parametrize("kills_one", [False, True])
def test_two_servers_on_one_data_folder(servers: Servers, survived: Survived, kills_one: bool) -> None:
    servers.start()
    servers.start()
    id = servers.create_job()
    if kills_one:
        servers.children[0].kill()
        servers.children[0].join()
    job = servers.finish(id)

    # A worker whose server was killed goes on; the other server's worker found the job taken.
    assert bench_attempts(servers.bench, job) == 1
    survived(servers.bench, job, "two servers", "SIGKILL of one" if kills_one else "at one job")


def bench_attempts(bench: Bench, job: Job) -> int:
    return bench.world.store.jobs.get(job.id).attempt


@pytest.mark.parametrize("hours", [5, -5])
def test_a_worker_whose_clock_is_set(make_bench: MakeBench, survived: Survived, hours: int) -> None:
    bench = make_bench(save_interval_s=1e-6)
    job = bench.create_job()
    assert bench.run(job, "", SetClock(step_2=hours * 3600, step_4=-hours * 3600)) == 0
    assert bench_attempts(bench, job) == 1

    survived(bench, job, "steps 2 and 4", f"the worker's clock set by {hours:+} h and by {-2 * hours:+} h")


@pytest.mark.parametrize("hours", [5, -5])
def test_a_server_whose_clock_is_set_leaves_a_live_job_alone_and_finds_a_dead_one(
    make_bench: MakeBench, survived: Survived, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    bench = make_bench(lease_s=30.0)
    job = bench.create_job()
    young = bench.world.upload(b"a row is about to name it\n")
    worker = bench.start(job, "step.recorded:stop:2")
    stop_outside_a_transaction(worker, bench.world)
    server = Scheduler(bench.world.store, bench.world.storage, 1, lambda _wake: NoExecutor(), lease_s=1.0)
    monkeypatch.setattr(scheduler, "SWEEP_INTERVAL_S", 0.0)
    server.tick()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
    server.tick()
    assert bench.world.store.jobs.get(job.id).status is Status.RUNNING
    assert young in {key for key, _ in bench.world.storage.list()}

    worker.kill()
    worker.join()

    def found() -> bool:
        server.tick()
        return bench.world.store.jobs.get(job.id).status is Status.QUEUED

    wait_until(found, "the dead worker to be found")
    monkeypatch.setattr(time, "time", real)
    bench.finish(job)

    survived(bench, job, "step.recorded:2", f"the server's clock set by {hours:+} h, SIGKILL of the worker")


def test_a_lease_written_by_a_clock_that_went_wrong_while_no_server_ran(bench: Bench, survived: Survived) -> None:
    job = bench.create_job()
    claimed = bench.world.store.attempts.claim(job.id, "a worker of yesterday", 5 * 3600)
    assert claimed is not None
    server = Scheduler(bench.world.store, bench.world.storage, 1, lambda _wake: NoExecutor(), lease_s=0.1)

    def found() -> bool:
        server.tick()
        return bench.world.store.jobs.get(job.id).status is Status.QUEUED

    wait_until(found, "the dead worker to be found")
    bench.finish(job)

    survived(bench, job, "claimed", "a lease of 5 h by a clock that was wrong")


def test_a_read_only_data_folder_is_told_at_the_start(bench: Bench, small_disk: Path) -> None:
    servers = Servers(bench)
    folder = small_disk / "data"
    bench.world.settings = bench.world.settings.model_copy(update={"data_dir": folder})
    servers.start()
    servers.newest.terminate()
    servers.newest.join()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    servers.start()
    servers.newest.join()

    assert servers.newest.exitcode == 2
    told = (bench.folder / "server-1.log").read_text()
    assert f"The data folder '{folder}' cannot be written to" in told
    assert "Traceback" not in told
