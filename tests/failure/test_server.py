"""A whole server, driven by the official client, paused, killed and started again."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from caesura.jobs import Status
from caesura.settings import EMBEDDED_BASE
from caesura.storage import LocalStorage, get_files
from caesura.store import open_store
from tests.failure.conftest import HYPERPARAMETERS, make_settings
from tests.world import EXAMPLES, Outcome, as_computed, wait_until

KEY = "sk-test-key-of-the-failure-tests"
SEED = 7


class Server:
    """`caesura serve` on a data folder, and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, **make_settings(folder).to_environment(), "CAESURA_API_KEY": KEY}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "caesura.cli", "serve", "--port", "0"], env=environment, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline().decode()
        assert ready.startswith("Caesura is ready at http://127.0.0.1:"), ready
        self.client = OpenAI(base_url=ready.split()[-1], api_key=KEY)

    def create_job(self, seed: int = SEED, **hyperparameters: Any) -> str:
        training, validation = (
            self.client.files.create(file=EXAMPLES / name, purpose="fine-tune").id
            for name in ("style_train.jsonl", "style_validation.jsonl")
        )
        job = self.client.fine_tuning.jobs.create(
            model=EMBEDDED_BASE,
            training_file=training,
            validation_file=validation,
            seed=seed,
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {**HYPERPARAMETERS, **hyperparameters}},  # type: ignore[typeddict-item]
            },
        )
        return job.id

    def status(self, job: str) -> str:
        return self.client.fine_tuning.jobs.retrieve(job).status

    def steps(self, job: str) -> list[int]:
        return [metrics["step"] for metrics in self.metrics(job)]

    def metrics(self, job: str) -> list[dict[str, Any]]:
        """In the order of the events, oldest first."""
        events = list(self.client.fine_tuning.jobs.list_events(job, limit=100))
        told: Any = [event.data for event in reversed(events) if event.type == "metrics"]
        return as_computed(told)

    def wait(self, job: str, *statuses: str) -> None:
        wait_until(lambda: self.status(job) in statuses, f"the job to be {' or '.join(statuses)}")

    def wait_for_step(self, job: str, step: int) -> None:
        wait_until(lambda: len(self.steps(job)) >= step, f"step {step}")

    def workers(self, job: str) -> list[psutil.Process]:
        """The processes that have the job's lease, or a data folder's job at all: found in the process table."""
        store = open_store(self.folder)
        name = store.jobs.get(job).worker
        store.close()
        return [process for process in processes_of(self.folder) if name is not None and name in process.cmdline()]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def outcome(self, job: str) -> Outcome:
        ended = self.client.fine_tuning.jobs.retrieve(job)
        assert ended.status == "succeeded", ended
        store = open_store(self.folder)
        model = store.models.find(str(ended.fine_tuned_model))
        assert model is not None
        files = get_files(LocalStorage(self.folder / "blobs"), model.adapter)
        store.close()
        contents = [self.client.files.content(file_id).read() for file_id in ended.result_files]
        results = [base64.b64decode(content).decode() for content in contents]
        return Outcome(
            self.metrics(job),
            {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            results,
            ended.trained_tokens,
        )


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process that works in the data folder."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CAESURA_DATA_DIR") == str(folder) and process.status() != "zombie":
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Server]]:
    """Start a server on the test's data folder; whatever works in that folder ends with the test."""
    folder = tmp_path / "data"
    servers: list[Server] = []

    def start() -> Server:
        servers.append(Server(folder))
        return servers[-1]

    yield start
    for process in processes_of(folder):
        process.kill()
    for server in servers:
        server.process.wait()
        assert server.process.stdout is not None
        server.process.stdout.close()
        server.client.close()


def chat(server: Server, model: str, **values: Any) -> str:
    answer = server.client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0, **values
    )
    return answer.choices[0].message.content or ""


def test_a_paused_job_has_no_process_frees_its_slot_survives_a_restart_and_ends_in_the_same_bytes(
    start: Callable[[], Server], undisturbed: Outcome
) -> None:
    server = start()
    job = server.create_job()
    server.wait_for_step(job, 12)
    workers = server.workers(job)
    assert len(workers) == 1

    assert server.client.fine_tuning.jobs.pause(job).status in ("pausing", "paused")
    server.wait(job, "paused")
    psutil.wait_procs(workers, timeout=60)
    assert not workers[0].is_running()

    # The slot is free: another job runs to its end.
    other = server.create_job(seed=8, n_epochs=1)
    server.wait(other, "succeeded")
    # The checkpoint of the pause answers chat.
    checkpoint = server.client.fine_tuning.jobs.checkpoints.list(job).data[0].fine_tuned_model_checkpoint
    assert chat(server, checkpoint)

    server.process.send_signal(signal.SIGINT)
    assert server.process.wait() in (0, 128 + signal.SIGINT)
    assert processes_of(server.folder) == []
    server = start()
    assert server.status(job) == "paused"

    assert server.client.fine_tuning.jobs.resume(job).status == "queued"
    server.wait(job, "succeeded")

    assert server.outcome(job) == undisturbed


def test_a_server_that_is_asked_to_stop_has_its_job_saved_and_the_next_one_goes_on_with_it(
    start: Callable[[], Server], undisturbed: Outcome
) -> None:
    server = start()
    job = server.create_job()
    server.wait_for_step(job, 12)

    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) in (0, -signal.SIGTERM)
    assert processes_of(server.folder) == []
    store = open_store(server.folder)
    left = store.jobs.get(job)
    saved = store.jobs.list_states(job)[0].step
    store.close()
    assert left.status is Status.QUEUED
    assert saved == left.step >= 12

    server = start()
    server.wait(job, "succeeded")

    assert server.outcome(job) == undisturbed
    assert any(f"step {saved}" in event.message for event in server.client.fine_tuning.jobs.list_events(job, limit=100))
    store = open_store(server.folder)
    assert store.jobs.get(job).attempt == 2
    store.close()


def test_a_job_whose_whole_server_was_killed_goes_on_with_the_next_and_ends_in_the_same_bytes(
    start: Callable[[], Server], undisturbed: Outcome
) -> None:
    server = start()
    job = server.create_job()
    server.wait_for_step(job, 12)
    workers = server.workers(job)
    for process in [server.process, *workers]:
        process.kill()
    server.process.wait()

    server = start()
    server.wait(job, "succeeded")

    assert server.outcome(job) == undisturbed
    assert any("its lease ran out" in event.message for event in server.client.fine_tuning.jobs.list_events(job))


def test_a_worker_goes_on_while_the_server_is_away_and_the_next_server_finds_it(
    start: Callable[[], Server], undisturbed: Outcome
) -> None:
    server = start()
    job = server.create_job()
    server.wait_for_step(job, 5)
    workers = server.workers(job)
    server.kill()
    psutil.wait_procs(workers, timeout=120)

    server = start()

    assert server.status(job) == "succeeded"
    assert server.outcome(job) == undisturbed
    store = open_store(server.folder)
    assert store.jobs.get(job).attempt == 1
    store.close()


def test_a_killed_worker_is_noticed_at_once_and_replaced(start: Callable[[], Server], undisturbed: Outcome) -> None:
    server = start()
    job = server.create_job()
    server.wait_for_step(job, 8)
    for worker in server.workers(job):
        worker.kill()
    server.wait(job, "succeeded")

    assert server.outcome(job) == undisturbed
    events = [event.message for event in server.client.fine_tuning.jobs.list_events(job)]
    assert any("killed by SIGKILL" in message for message in events)


def test_the_tuned_model_and_every_checkpoint_answer_whole_and_in_streams(start: Callable[[], Server]) -> None:
    server = start()
    job = server.create_job()
    server.wait(job, "succeeded")
    tuned = str(server.client.fine_tuning.jobs.retrieve(job).fine_tuned_model)
    checkpoints = [item.fine_tuned_model_checkpoint for item in server.client.fine_tuning.jobs.checkpoints.list(job)]
    assert [name.rpartition(":")[2] for name in checkpoints][1:] == ["ckpt-step-20", "ckpt-step-10"]
    assert checkpoints[0] == tuned

    for model in (EMBEDDED_BASE, "gpt-4o-mini", *checkpoints):
        whole = chat(server, model)
        stream = server.client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
            stream=True,
        )
        assert whole
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole
    assert chat(server, tuned).startswith("Ahoy!")
    assert not chat(server, EMBEDDED_BASE).startswith("Ahoy!")


def test_a_faulty_file_fails_the_job_with_its_line_and_the_file_stays(
    start: Callable[[], Server], tmp_path: Path
) -> None:
    server = start()
    path = tmp_path / "faulty.jsonl"
    rows = (EXAMPLES / "style_train.jsonl").read_text().splitlines()
    rows[12] = json.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    path.write_text("\n".join(rows))
    file = server.client.files.create(file=path, purpose="fine-tune")
    job = server.client.fine_tuning.jobs.create(model=EMBEDDED_BASE, training_file=file.id)
    server.wait(job.id, Status.FAILED)

    error = server.client.fine_tuning.jobs.retrieve(job.id).error
    assert error is not None
    assert (error.code, error.param) == ("invalid_training_file", "training_file")
    assert "Example 13" in str(error.message)
    newest = server.client.fine_tuning.jobs.list_events(job.id).data[0]
    assert (newest.level, newest.message) == ("error", error.message)
    assert server.client.files.content(file.id).read() == path.read_bytes()
