"""A real server as a child process, in a data folder of its own, and what can be seen of its processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
from openai import OpenAI

from benchmarks.processes import environment

API_KEY = "sk-caesura-benchmark"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0
#: A spare that has computed for this long, and then not at all for a while, is ready.
SPARE_MIN_CPU_S = 0.5
SPARE_QUIET_S = 0.5
_T = TypeVar("_T")


class TimedOut(Exception):
    """Something that should have happened did not."""


def await_value(poll: Callable[[], _T | None], interval_s: float, timeout_s: float, what: str) -> _T:
    """The first value of `poll` that is not None. Raises TimedOut."""
    give_up_at = time.perf_counter() + timeout_s
    while time.perf_counter() < give_up_at:
        value = poll()
        if value is not None:
            return value
        time.sleep(interval_s)
    raise TimedOut(f"no {what} within {timeout_s:.0f} s")


@dataclass(frozen=True, slots=True)
class RunningServer:
    process: subprocess.Popen[str]
    url: str
    data_dir: Path
    #: Seconds from its launch to the line that says it is ready.
    started_s: float

    def client(self) -> OpenAI:
        return OpenAI(base_url=self.url, api_key=API_KEY, max_retries=0, timeout=60.0)

    def find(self, *words: str) -> psutil.Process | None:
        """The newest child whose command line has all these words."""
        found = [child for child in self._children() if set(words) <= set(_command(child))]
        return max(found, key=lambda child: child.create_time(), default=None)

    def await_spare(self) -> psutil.Process:
        """The spare worker, once it has warmed up: it has computed, and then it waits."""

        def ready() -> psutil.Process | None:
            spare = self.find("caesura.worker", "--spare")
            if spare is None:
                return None
            try:
                before = cpu_s(spare)
                time.sleep(SPARE_QUIET_S)
                return spare if before >= SPARE_MIN_CPU_S and cpu_s(spare) == before else None
            except psutil.NoSuchProcess:  # it was the worker of the job before, on its way out
                return None

        return await_value(ready, 0.05, START_TIMEOUT_S, "warm spare")

    def _children(self) -> Iterator[psutil.Process]:
        yield from psutil.Process(self.process.pid).children()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def memory_mib(process: psutil.Process) -> tuple[float, float]:
    """The memory that the process has now, and the most it has had at once."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    now, peak = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
    assert now is not None
    assert peak is not None
    return int(now[1]) / 1024, int(peak[1]) / 1024


@contextmanager
def running_server(
    prepare: Callable[[Path], None] | None = None, **settings: str
) -> Generator[RunningServer, None, None]:
    """`caesura serve` on a free port, with `settings` as environment variables; gone when the context is left.

    `prepare` may fill the data folder first.
    """
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        if prepare is not None:
            prepare(data_dir)
        began = time.perf_counter()
        process, url = launch_server(data_dir, settings)
        try:
            yield RunningServer(process, url, data_dir, time.perf_counter() - began)
        finally:
            stop_server(process)


def launch_server(data_dir: Path, settings: dict[str, str]) -> tuple[subprocess.Popen[str], str]:
    """`caesura serve` on a free port, ready; and its base URL. Raises TimedOut."""
    more = {f"CAESURA_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "caesura.cli", "serve", "--port", "0", "--data-dir", str(data_dir)]
    process = subprocess.Popen(
        command,
        cwd=data_dir.parent,  # where no caesura.toml lies
        env=environment(CAESURA_API_KEY=API_KEY, CAESURA_LOG_LEVEL="error", **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        return process, _await_url(process)
    except TimedOut:
        stop_server(process)
        raise


def _await_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    killer = threading.Timer(START_TIMEOUT_S, process.kill)
    killer.start()
    try:
        for line in process.stdout:
            if match := re.search(r"ready at (\S+)", line):
                return match[1]
    finally:
        killer.cancel()
    raise TimedOut("the server ended before it was ready")


def stop_server(process: subprocess.Popen[str]) -> None:
    """Ask the server to end; kill what is left of it and of its children after a while."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        if child.is_running():
            child.kill()
