"""The worlds in which the attacks run, each in processes of its own: a user, and a level of the sandbox."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

from caesura.graders.sandbox import Level
from tests.failure.sandbox.host import CHECKOUT, SECRET_NAME

#: Of a world, at a time: most attacks that take long do nothing but wait for their end.
_NUM_RUNNERS = 4
#: Belongs to nobody else; each world has its own, since some limits count all that a user runs.
_FIRST_UID = 61_101


@dataclass(frozen=True, slots=True)
class World:
    #: 0 is root; None is whoever runs the tests.
    uid: int | None
    #: NONE: nothing holds the attacks. Only those run that are real and do no harm.
    level: Level

    @property
    def name(self) -> str:
        level = "unconfined" if self.level == Level.NONE else self.level
        return f"{'root' if self.uid == 0 else 'user'}-{level}"

    def obstacle(self) -> str | None:
        """Why it cannot be had here, and what to do."""
        if self.uid == 0 and os.geteuid() != 0:
            return "only root can be confined as root: run the tests as root too"
        if self.level == Level.STRONG and shutil.which("bwrap") is None:
            return "bubblewrap is not installed: apt install bubblewrap"
        return None


def _user(index: int) -> int | None:
    return _FIRST_UID + index if os.geteuid() == 0 else None


CONFINED = [
    *(World(0, level) for level in (Level.STRONG, Level.KERNEL)),
    *(World(_user(index), level) for index, level in enumerate((Level.STRONG, Level.KERNEL))),
]
UNCONFINED = World(_user(2), Level.NONE)


@dataclass(frozen=True, slots=True)
class Run:
    """What came of attacks in a world."""

    #: By attack, as `runner.Result`.
    results: dict[str, dict[str, Any]]
    #: What was there after the sandbox was closed.
    left: list[str]
    #: Why the world could not be had.
    unreachable: str | None
    #: What the runners wrote to their standard error.
    messages: str


def run_attacks(world: World, names: list[str]) -> Run:
    """Runs the attacks, some at a time, each on a sandbox and a host that no other uses meanwhile."""
    groups = [group for index in range(_NUM_RUNNERS) if (group := names[index::_NUM_RUNNERS])]
    runners = [_start(world, group) for group in groups]
    texts = [(runner.wait(), _text(output), _text(messages)) for runner, output, messages in runners]
    records = [json.loads(line) for _, output, _ in texts for line in output.splitlines()]
    return Run(
        results={record["name"]: record for record in records if "name" in record},
        left=[what for record in records for what in record.get("left", [])],
        unreachable=next((record["unreachable"] for record in records if "unreachable" in record), None),
        messages="".join(f"exit status {status}\n{messages}" for status, _, messages in texts if status != 0),
    )


def _start(world: World, names: Iterable[str]) -> tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]:
    output, messages = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
    with tempfile.TemporaryFile() as request:
        request.write("".join(f"{name}\n" for name in names).encode())
        request.seek(0)
        command = [sys.executable, "-m", "tests.failure.sandbox.runner", world.level]
        if world.uid is not None:
            command = [sys.executable, "-m", "tests.failure.sandbox.entry", str(world.uid), *command]
        runner = subprocess.Popen(
            command,
            stdin=request,
            stdout=output,
            stderr=messages,
            cwd=CHECKOUT,
            env={**os.environ, SECRET_NAME: secrets.token_hex(16), "PYTHONDONTWRITEBYTECODE": "1"},
            # Should an attack get as far as its group, then no further.
            start_new_session=True,
        )
    return runner, output, messages


def _text(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode(errors="replace")
