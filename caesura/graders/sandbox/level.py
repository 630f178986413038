"""`find_level`: the best level of this machine, found by attacking it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from caesura.graders.sandbox.interpreter import ENVIRONMENT
from caesura.graders.sandbox.limits import Level, Limits, RuntimeFault, SandboxFault
from caesura.graders.sandbox.sandbox import Sandbox

logger = logging.getLogger(__name__)

#: Of a level. It takes a tenth of a second; but a bubblewrap that is refused what it needs may hang.
TIMEOUT_S = 10.0
_LIMITS = Limits(wall_clock_s=5.0, memory_bytes=256 * 2**20, file_bytes=2**20)
_GOOD = "def grade(sample, item):\n    return sample['x'] / 4\n"
#: Returns the attacks that were not refused, a bit for each.
ATTACKS = """
import ctypes, os, socket, sys

def connect(target):
    socket.create_connection(("127.0.0.1", target["port"]), timeout=1)

def read(target):
    open(target["path"]).read()

def write(target):
    open(target["path"], "a").write("x")

def create(target):
    open(target["path"] + ".new", "w")

def fork(target):
    if os.fork() == 0:
        os._exit(0)

def execute(target):
    os.execv(sys.executable, [sys.executable, "-c", ""])

def signal(target):
    os.kill(target["pid"], 0)

def read_environment(target):
    open(f"/proc/{target['pid']}/environ", "rb").read()

def inherit_environment(target):
    if set(os.environ) <= set(target["names"]):
        raise PermissionError

def inherit_descriptor(target):
    os.fstat(4)

def become_root(target):
    if 0 not in (os.getuid(), os.geteuid()):
        raise PermissionError

ATTACKS = [connect, read, write, create, fork, execute, signal, read_environment, inherit_environment,
           inherit_descriptor, become_root]

def grade(sample, item):
    open_doors = 0
    for number, attack in enumerate(ATTACKS):
        try:
            attack(sample)
        except OSError:
            continue
        open_doors |= 1 << number
    return open_doors
"""


def find_level() -> Level:
    """The best level at which attacks are refused and a good grader works. Blocks, for well under a second.

    It may be called from anywhere: the attacks run in an event loop in a thread of their own.
    """
    return first_that_holds(_holds)


def first_that_holds(holds: Callable[[Level], Awaitable[bool]]) -> Level:
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, _first_that_holds(holds)).result()


async def _first_that_holds(holds: Callable[[Level], Awaitable[bool]]) -> Level:
    for level in (Level.STRONG, Level.KERNEL):
        if await holds(level):
            return level
        logger.debug("graders cannot be run at the level %s", level)
    return Level.NONE


async def _holds(level: Level) -> bool:
    sandbox = Sandbox(level, _LIMITS, num_workers=1)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await withstands(sandbox, level)
    except (RuntimeFault, SandboxFault, TimeoutError) as fault:
        logger.debug("level %s: %s", level, fault or "no answer in time")
        return False
    finally:
        await sandbox.close()


async def withstands(sandbox: Sandbox, level: Level) -> bool:
    """Whether all attacks are refused, and a good grader still works."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        open_doors = await sandbox.run(ATTACKS, _target(folder, server.getsockname()[1]), {})
    if open_doors:
        logger.debug("level %s: attacks were not refused: bits %s", level, bin(int(open_doors)))
    return open_doors == 0 and await sandbox.run(_GOOD, {"x": 3}, {}) == 0.75


def _target(folder: str, port: int) -> dict[str, Any]:
    """What to attack. Open to every user: what is refused is not for want of ordinary rights."""
    path = Path(folder) / "file"
    path.write_text("secret")
    path.chmod(0o666)
    path.parent.chmod(0o777)
    return {"path": str(path), "port": port, "pid": os.getpid(), "names": [*ENVIRONMENT, "HOME", "TMPDIR"]}
