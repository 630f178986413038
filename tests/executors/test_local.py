from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from caesura.executors import WorkerExit, local
from caesura.executors.local import LocalExecutor
from caesura.settings import Settings
from tests.world import wait_until

#: A worker of a few lines: it reads its job as the real one does, writes it down, and waits to be ended.
WORKER = """
import signal, sys
from pathlib import Path
arguments = sys.argv[1:]
job = sys.stdin.readline().strip() if "--spare" in arguments else arguments[-1]
if job == "dies":
    sys.exit(3)
if job:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Path(sys.argv[0]).with_name(job).write_text(" ".join(arguments))
    signal.pause()
"""

MakeExecutor = Callable[..., LocalExecutor]


@pytest.fixture
def make_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeExecutor]:
    """Executors of the real processes, which run WORKER instead of the training worker."""
    program = tmp_path / "worker.py"
    program.write_text(WORKER)
    original = subprocess.Popen
    made: list[LocalExecutor] = []

    def popen(command: list[str], **options: object) -> subprocess.Popen[str]:
        assert command[:3] == [sys.executable, "-m", "caesura.worker"]
        return original([sys.executable, str(program), *command[3:]], **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(local.subprocess, "Popen", popen)
    monkeypatch.setattr(local, "SPARE_DELAY_S", 0.0)

    def make(*, warm_spare: bool = True, on_exit: Callable[[], None] = lambda: None) -> LocalExecutor:
        made.append(LocalExecutor(Settings(data_dir=tmp_path, warm_spare=warm_spare), on_exit))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def ends(executor: LocalExecutor) -> list[WorkerExit]:
    found: list[WorkerExit] = []

    def look() -> bool:
        found.extend(executor.tick())
        return bool(found)

    wait_until(look, "a worker's end")
    return found


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "worker.py" in " ".join(child.cmdline())]


def the_child() -> psutil.Process:
    """The one that there is; between its fork and its program's start it is not known as one."""
    wait_until(lambda: len(children()) == 1, "one child")
    return children()[0]


@pytest.mark.parametrize("warm_spare", [True, False])
def test_a_worker_gets_the_job_it_was_started_for(
    make_executor: MakeExecutor, tmp_path: Path, warm_spare: bool
) -> None:
    executor = make_executor(warm_spare=warm_spare)
    executor.tick()
    name = executor.start("job-1")

    wait_until((tmp_path / "job-1").exists, "the worker to have its job")
    wait_until(lambda: name in (tmp_path / "job-1").read_text(), "the worker to know its name")


def test_the_spare_takes_the_next_job_and_another_takes_its_place(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor = make_executor()
    executor.tick()
    spare = the_child()
    executor.start("job-1")
    executor.tick()

    wait_until((tmp_path / "job-1").exists, "the worker to have its job")
    assert "--spare" in (tmp_path / "job-1").read_text()
    wait_until(lambda: len(children()) == 2, "another spare")
    assert spare in children()


def test_a_dead_spare_is_replaced_and_a_job_started_meanwhile_is_not_lost(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    executor = make_executor()
    executor.tick()
    spare = the_child()
    spare.kill()
    wait_until(lambda: spare.status() == psutil.STATUS_ZOMBIE if spare.is_running() else True, "the spare's death")
    executor.start("job-1")

    wait_until((tmp_path / "job-1").exists, "a worker to have the job")


def test_an_end_is_told_once_with_its_worker_its_job_and_its_cause(make_executor: MakeExecutor) -> None:
    executor = make_executor(warm_spare=False)
    name = executor.start("dies")

    assert ends(executor) == [WorkerExit(name, "dies", "exit code 3")]
    assert executor.tick() == []


def test_a_signal_is_told_by_its_name(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor = make_executor(warm_spare=False)
    name = executor.start("job-1")
    wait_until((tmp_path / "job-1").exists, "the worker to have its job")
    os.kill(the_child().pid, signal.SIGKILL)

    assert ends(executor) == [WorkerExit(name, "job-1", "killed by SIGKILL")]


def test_an_end_is_hinted_at(make_executor: MakeExecutor) -> None:
    hinted = threading.Event()
    make_executor(warm_spare=False, on_exit=hinted.set).start("dies")

    assert hinted.wait(60)


def test_closing_ends_every_child(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor = make_executor()
    executor.tick()
    executor.start("job-1")
    executor.tick()
    wait_until((tmp_path / "job-1").exists, "the worker to have its job")
    executor.close()

    assert children() == []


def test_a_child_that_does_not_end_in_time_is_killed_and_holds_nobody_up_longer(
    make_executor: MakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(local, "GRACE_S", 0.2)
    executor = make_executor(warm_spare=False)
    worker = executor.start("job-1")
    wait_until((tmp_path / "job-1").exists, "the worker to have its job")
    child = the_child()
    child.suspend()
    executor.close()

    assert not child.is_running()
    assert f"{worker} did not end within" in caplog.text


def test_a_spare_ends_when_its_server_is_gone(tmp_path: Path) -> None:
    """The real spare: its server's end of the pipe is closed by the kernel when the server dies."""
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from caesura.executors.local import LocalExecutor\n"
        "from caesura.settings import Settings\n"
        f"executor = LocalExecutor(Settings(data_dir=Path({str(tmp_path)!r})), lambda: None)\n"
        "executor.tick()\n"
        "print(executor._spare.process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    spare = psutil.Process(int(server.stdout.readline()))
    server.kill()
    server.wait()
    server.stdout.close()
    psutil.wait_procs([spare], timeout=120)
    assert not spare.is_running()
