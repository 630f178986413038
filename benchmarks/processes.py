"""Child processes: all in one and the same environment, which is the one that the product gives its workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from caesura.executors import WORKER_ENVIRONMENT
from caesura.settings import ENV_PREFIX

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
TIMEOUT_S = 900.0


class ProgramFailed(Exception):
    """A program of the benchmark ended without a result."""


def environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of Caesura's, with what all contenders share."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return {**own, **WORKER_ENVIRONMENT, **OFFLINE, **more}


def run_program(name: str, arguments: Mapping[str, Any], **more: str) -> dict[str, Any]:
    """Run `benchmarks.programs.{name}` and return its result: the JSON object on its last line of output. `more` is for
    its environment.

    Raises ProgramFailed with the end of what it wrote to standard error.
    """
    command = [sys.executable, "-m", f"benchmarks.programs.{name}", json.dumps(dict(arguments))]
    ended = subprocess.run(
        command, env=environment(**more), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    if ended.returncode != 0:
        raise ProgramFailed(f"{name} ended with exit code {ended.returncode}:\n{ended.stderr[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def say(text: str) -> None:
    """Progress, apart from the report."""
    print(text, file=sys.stderr, flush=True)
