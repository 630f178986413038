"""A sandbox to try graders on."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

from caesura.graders.sandbox import Level, Limits, RuntimeFault, Sandbox, SandboxFault

GOOD = "def grade(sample, item):\n    return sample['value']\n"
#: It has no import line, as GOOD has none: one zygote serves both.
SLEEP = "def grade(sample, item):\n    __import__('time').sleep(60)\n"


class Bench:
    def __init__(self, level: Level, limits: Limits, num_workers: int) -> None:
        self.level = level
        self.limits = limits
        self.sandbox = Sandbox(level, limits, num_workers)

    async def run(self, source: str, sample: dict[str, Any] | None = None, item: dict[str, Any] | None = None) -> float:
        return await self.sandbox.run(source, sample or {}, item or {})

    async def fault(self, source: str, sample: dict[str, Any] | None = None) -> str:
        """The details or the kind of the fault that comes of it; the call after it works."""
        try:
            value = await self.run(source, sample)
        except RuntimeFault as fault:
            text = fault.details
        except SandboxFault as fault:
            text = fault.kind
        else:
            raise AssertionError(f"there was no fault: {value}")
        assert await self.run(GOOD, {"value": 0.5}) == 0.5
        return text


def grader(body: str) -> str:
    """A source with this body of `grade`, and what precedes it up to a line `---`."""
    head, _, body = body.rpartition("---\n")
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"{head}\ndef grade(sample, item):\n{lines}"


def is_running(source_process: psutil.Process) -> bool:
    try:
        return source_process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes() -> dict[int, psutil.Process]:
    """The interpreters among the descendants of this process that run graders: zygotes and calls."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            is_ours = process.name().startswith("python") and "-P" in process.cmdline()
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process
    return found


def zygotes() -> list[psutil.Process]:
    found = processes()
    return [process for process in found.values() if parent_of(process) not in found]


def calls() -> list[psutil.Process]:
    found = processes()
    return [process for process in found.values() if parent_of(process) in found]


def parent_of(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def is_root() -> bool:
    return os.geteuid() == 0
