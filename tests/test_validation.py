"""Large files are read by a process of their own. One that hangs here reads from a pipe into which nobody writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from caesura import validation
from caesura.data.validate import Report, validate
from caesura.jobs import Job, Status
from caesura.scheduler import Scheduler
from caesura.settings import Settings
from caesura.validation import ValidationStopped, Validator
from tests.test_scheduler import PAIR, FakeExecutor, new_job, status
from tests.world import PATIENCE_S, World, example_rows, wait_until

PROMPT = {"messages": [{"role": "user", "content": "1 + 1?"}], "answer": "2"}
#: The ends of the pipes that nobody writes into.
HELD: list[int] = []
CHECK = {
    "type": "string_check",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(Settings(data_dir=tmp_path))
    yield world
    world.close()


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "IN_PLACE_BYTES", -1)


def stall(world: World, job: Job) -> None:
    """Put a pipe in the place of the job's file: whoever reads it waits, until the test has ended."""
    path = world.settings.data_dir / "blobs" / job.training_blob
    path.unlink()
    os.mkfifo(path)
    # Linux lets one process hold both ends, so that opening it to read does not wait.
    HELD.append(os.open(path, os.O_RDWR))


@pytest.fixture(autouse=True)
def release() -> Iterator[None]:
    yield
    while HELD:
        os.close(HELD.pop())


def readers(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "caesura.validation" in child.cmdline()]


def the_reader() -> psutil.Process:
    """The process that reads now; of this process's children."""
    here = psutil.Process()
    wait_until(lambda: len(readers(here)) == 1, "a process that reads")
    return readers(here)[0]


def reinforcement_job(world: World, rows: list[dict[str, Any]]) -> Job:
    return world.create_job(rows, [PROMPT], method="reinforcement", body={"grader": CHECK})


FILES: dict[str, Any] = {
    "good": lambda world: world.create_job(example_rows("style_train.jsonl"), example_rows("style_validation.jsonl")),
    "too few": lambda world: world.create_job(example_rows("style_train.jsonl")[:3]),
    "faulty": lambda world: world.create_job([*example_rows("style_train.jsonl"), {"messages": []}]),
    "faulty validation": lambda world: world.create_job(example_rows("style_train.jsonl"), [{"messages": []}]),
    "another format": lambda world: world.create_job([PAIR] * 10),
    "pairs": lambda world: world.create_job([PAIR] * 10, method="dpo"),
    "prompts": lambda world: reinforcement_job(world, [PROMPT] * 10),
    "lacking": lambda world: reinforcement_job(world, [PROMPT] * 9 + [{"messages": PROMPT["messages"]}]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_process_of_its_own_finds_what_is_found_in_place(
    name: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = FILES[name](world)
    validator = Validator(world.storage)
    assert validator.is_quick(job)
    in_place = validator.find_fault(job)
    assert (in_place is None) == (name in ("good", "pairs", "prompts"))

    monkeypatch.setattr(validation, "IN_PLACE_BYTES", -1)
    validator = Validator(world.storage)  # the first remembers what it has said
    assert not validator.is_quick(job)
    assert validator.find_fault(job) == in_place


@pytest.mark.usefixtures("everything_is_large")
def test_a_job_with_large_files_is_validated_and_launched_by_the_scheduler(world: World) -> None:
    job, faulty = new_job(world), new_job(world, b"{}\n" * 12)
    executor = FakeExecutor()
    scheduler = Scheduler(world.store, world.storage, 1, lambda _wake: executor)
    scheduler.start()
    try:
        wait_until(lambda: status(world, faulty) is Status.FAILED, "the faulty file to be found")
        wait_until(lambda: executor.started == [job.id], "the job to be launched")
    finally:
        scheduler.stop()

    error = world.store.jobs.get(faulty.id).error
    assert error is not None
    assert (error.code, error.param) == ("invalid_training_file", "training_file")


def test_all_faults_of_both_files_are_in_the_report(world: World) -> None:
    training = b"".join(b"%s\n" % line for line in [b"{}", b"not JSON"] * 6)
    job = new_job(world, training, b'{"messages": [{"role": "nobody", "content": ""}]}\n')
    fault = Validator(world.storage).find_fault(job)

    assert fault is not None
    assert fault.error.code == "invalid_training_file"
    report = fault.report
    assert report is not None
    assert (report["ok"], report["method"], report["model"]) == (False, "supervised", job.base)
    first, second = report["files"]
    assert (first["file"], first["param"], first["rows"]) == (job.training_file, "training_file", 0)
    assert first["error"] == {"code": fault.error.code, "message": fault.error.message}
    assert [problem["line"] for problem in first["problems"]] == list(range(1, 13))
    assert all(problem["message"] and problem["remedy"] for problem in first["problems"])
    assert second["error"]["code"] == "invalid_validation_file"
    assert second["problems"][0]["field"] == "messages[0].role"


@pytest.mark.usefixtures("everything_is_large")
def test_a_process_that_dies_is_a_fault_of_the_server_with_a_remedy(world: World) -> None:
    job = new_job(world)
    stall(world, job)
    validator = Validator(world.storage)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(validator.find_fault, job)
        the_reader().send_signal(signal.SIGKILL)
        fault = found.result(PATIENCE_S)

    assert fault is not None
    assert (fault.error.code, fault.error.param, fault.report) == ("server_error", "training_file", None)
    assert "(killed by SIGKILL). Create the job again." in fault.error.message


def test_what_cannot_be_read_is_told_without_a_path(world: World, tmp_path: Path) -> None:
    job = new_job(world)
    world.storage.delete(job.training_blob)
    fault = Validator(world.storage).find_fault(job)

    assert fault is not None
    assert (fault.error.code, fault.report) == ("server_error", None)
    assert str(tmp_path) not in fault.error.message


@pytest.mark.usefixtures("everything_is_large")
def test_closing_ends_the_process_and_what_waits_for_it(world: World) -> None:
    job = new_job(world)
    stall(world, job)
    validator = Validator(world.storage)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(validator.find_fault, job)
        reader = the_reader()
        validator.close()
        with pytest.raises(ValidationStopped):
            found.result(PATIENCE_S)

    assert not reader.is_running()
    with pytest.raises(ValidationStopped):
        validator.find_fault(job)


def test_a_large_file_holds_up_neither_a_small_one_nor_the_end_of_the_server(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = new_job(world)
    stall(world, large)
    monkeypatch.setattr(Validator, "is_quick", lambda _self, job: job.id != large.id)
    monkeypatch.setattr(validation, "_is_small", lambda file: os.fstat(file.fileno()).st_size > 0)
    executor = FakeExecutor()
    scheduler = Scheduler(world.store, world.storage, 1, lambda _wake: executor)
    scheduler.start()
    reader = the_reader()
    small = new_job(world)
    scheduler.wake()
    wait_until(lambda: executor.started == [small.id], "the small one to be launched")
    scheduler.tick()
    assert readers(psutil.Process()) == [reader]
    scheduler.stop()

    assert not reader.is_running()
    assert status(world, large) is Status.VALIDATING_FILES


SERVER = """
import sys
from caesura import validation
from caesura.settings import Settings
from tests.world import World
validation.IN_PLACE_BYTES = -1
world = World(Settings(data_dir=sys.argv[1]))
print("ready", flush=True)
validation.Validator(world.storage).find_fault(world.store.jobs.get(sys.argv[2]))
"""


def test_the_process_ends_with_a_server_that_is_killed(world: World, tmp_path: Path) -> None:
    job = new_job(world)
    stall(world, job)
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path), job.id], stdout=subprocess.PIPE)
    assert server.stdout is not None
    with server:
        assert server.stdout.readline() == b"ready\n"
        seen = psutil.Process(server.pid)
        wait_until(lambda: len(readers(seen)) == 1, "a process that reads")
        (reader,) = readers(seen)
        server.kill()
    reader.wait(PATIENCE_S)

    assert not reader.is_running()


def test_the_program_answers_in_one_object(tmp_path: Path) -> None:
    """What crosses is plain: the request is one line, the reply a report."""
    file = tmp_path / "file.jsonl"
    file.write_text("{}\n")
    with file.open("rb") as opened:
        request = {"descriptor": opened.fileno(), "method": "supervised", "needed": []}
        process = subprocess.Popen(
            [sys.executable, "-m", "caesura.validation"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(opened.fileno(),),
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            reply = json.loads(process.stdout.read())

    assert Report.from_json(reply) == validate([b"{}\n"], "supervised")
    assert process.returncode == 0
