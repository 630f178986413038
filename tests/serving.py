"""`caesura serve`, as a user starts it: a process of its own, on a free port, with a data folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from caesura.settings import ENV_PREFIX
from tests.api.service import PATIENCE_S


@dataclass
class Running:
    """A server, and what it printed when it was ready."""

    process: subprocess.Popen[str]
    lines: list[str]
    log_file: Path

    @property
    def url(self) -> str:
        return self.lines[0].removeprefix("Caesura is ready at ")

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def exported(self) -> dict[str, str]:
        """What a shell makes of the lines that it printed for one."""
        script = "\n".join([*self.lines[1:], 'echo "$OPENAI_BASE_URL"', 'echo "$OPENAI_API_KEY"'])
        url, key = subprocess.check_output(["bash", "-c", script], text=True).splitlines()
        return {"base_url": url, "api_key": key}

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, signal_number: signal.Signals) -> int:
        self.process.send_signal(signal_number)
        return self.process.wait(PATIENCE_S)


class Starter:
    """Starts servers on one data folder. The settings of whoever runs the tests do not reach them."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._started: list[Running] = []

    def __call__(self, *arguments: str, **environment: str) -> Running:
        command = [sys.executable, "-m", "caesura.cli", "serve", *arguments]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
        values = {"CAESURA_PORT": "0", "CAESURA_DATA_DIR": str(self.data_dir), "CAESURA_WARM_SPARE": "false"}
        log_file = self.data_dir.with_name(f"server-{len(self._started)}.log")
        with log_file.open("w") as log:  # a pipe that nobody empties would hold up a server that tells much
            process = subprocess.Popen(
                command, env={**inherited, **values, **environment}, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert process.stdout is not None
        running = Running(process, [process.stdout.readline().rstrip("\n") for _ in range(3)], log_file)
        self._started.append(running)
        assert running.lines[2], running.log
        return running

    def close(self) -> None:
        for running in self._started:
            running.process.kill()
            running.process.communicate()
