"""`find_level` on machines that lack one thing or another: a filter of ours takes it away from a process."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from caesura.graders.sandbox import Level, Sandbox, find_level
from caesura.graders.sandbox.level import ATTACKS, first_that_holds, withstands

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bwrap: apt install bubblewrap")

#: Refuses one system call, or one option of it, then finds the level.
WITHOUT = """
import logging, os, sys
from caesura.graders.sandbox import find_level
from caesura.graders.sandbox.jail.bpf import ALLOW, ERRNO, JUMP_EQUAL, LOAD, RETURN, encode
from caesura.graders.sandbox.jail.kernel import forbid_privileges, install_filter, make_filter

logging.basicConfig(level="DEBUG")
logging.getLogger("asyncio").setLevel("WARNING")
number, option = int(sys.argv[1]), int(sys.argv[2])
refused = (RETURN, 0, 0, ERRNO | 38)
block = [(LOAD, 0, 0, 0), (JUMP_EQUAL, 0, 3, number), (LOAD, 0, 0, 16), (JUMP_EQUAL, 0, 1, option), refused]
if option < 0:
    block = [(LOAD, 0, 0, 0), (JUMP_EQUAL, 0, 1, number), refused]
forbid_privileges()
install_filter(make_filter(encode([*block, (RETURN, 0, 0, ALLOW)])))
print(find_level())
"""
#: x86-64 and aarch64.
LANDLOCK_CREATE, LANDLOCK_RESTRICT = 444, 446
PRCTL, SETRESUID, UNSHARE, CAPSET = (157, 117, 272, 126) if os.uname().machine == "x86_64" else (167, 147, 97, 91)
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
ANY = -1


def level_without(number: int, option: int = ANY, **environment: str) -> tuple[Level, str]:
    """What is found in a process without this system call, and what it logs."""
    command = [sys.executable, "-c", WITHOUT, str(number), str(option)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    return Level(done.stdout.strip()), done.stderr


@needs_bubblewrap
def test_this_machine_has_the_strong_level_and_it_is_found_quickly() -> None:
    start_s = time.monotonic()

    assert find_level() is Level.STRONG
    assert time.monotonic() - start_s < 1.0


def test_without_bubblewrap_the_kernels_level_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    caplog.set_level("DEBUG")

    assert find_level() is Level.KERNEL
    assert "install bubblewrap" in caplog.text


@needs_bubblewrap
def test_with_a_bubblewrap_that_fails_the_kernels_level_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho No permission to create a namespace >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_level() is Level.KERNEL


@pytest.mark.parametrize(
    ("number", "option", "said"),
    [
        (LANDLOCK_CREATE, ANY, "Landlock"),
        (LANDLOCK_RESTRICT, ANY, "ended without a reply"),
        (PRCTL, PR_SET_SECCOMP, "ended without a reply"),
        (PRCTL, PR_SET_NO_NEW_PRIVS, "did not start"),
        (CAPSET, ANY, "did not start"),
        pytest.param(
            *(SETRESUID, ANY, "did not start"),
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user"),
        ),
    ],
    ids=["landlock_create", "landlock_restrict", "seccomp", "no_new_privs", "capset", "setresuid"],
)
def test_without_one_of_the_layers_there_is_no_level(number: int, option: int, said: str) -> None:
    level, log = level_without(number, option, PATH="/nowhere")

    assert level is Level.NONE
    assert said in log


def test_levels_are_tried_best_first_and_the_first_that_holds_is_taken() -> None:
    tried: list[Level] = []

    async def only_kernel_holds(level: Level) -> bool:
        tried.append(level)
        return level is Level.KERNEL

    async def none_holds(level: Level) -> bool:
        return False

    assert first_that_holds(only_kernel_holds) is Level.KERNEL
    assert tried == [Level.STRONG, Level.KERNEL]
    assert first_that_holds(none_holds) is Level.NONE


class Porous(Sandbox):
    """Says that an attack succeeded, or that nothing works."""

    def __init__(self, open_doors: float, value: float) -> None:
        super().__init__(Level.KERNEL)
        self.results = {True: open_doors, False: value}

    async def run(self, source: str, sample: Mapping[str, Any], item: Mapping[str, Any]) -> float:
        return self.results[source == ATTACKS]


@pytest.mark.parametrize(
    ("open_doors", "value", "holds"), [(0.0, 0.75, True), (1.0, 0.75, False), (4.0, 0.75, False), (0.0, 0.5, False)]
)
def test_one_attack_that_is_not_refused_is_enough(open_doors: float, value: float, holds: bool) -> None:
    assert asyncio.run(withstands(Porous(open_doors, value), Level.KERNEL)) is holds


def test_it_may_be_asked_within_an_event_loop() -> None:
    code = (
        "import asyncio\nfrom caesura.graders.sandbox import find_level\n"
        "async def main(): print(find_level())\nasyncio.run(main())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() in ("strong", "kernel")


#: Runs one attack without a sandbox, in a process that has what the attack is after.
ATTACK = """
import os, socket
os.environ["SECRET"] = "x"
os.dup2(0, 4)
server = socket.create_server(("127.0.0.1", 0))
target = {"path": os.environ["TARGET"], "port": server.getsockname()[1], "pid": os.getpid(), "names": []}
(attack,) = [attack for attack in ATTACKS if attack.__name__ == os.environ["ATTACK"]]
attack(target)
"""


@pytest.mark.parametrize(
    "name",
    [
        *("connect", "read", "write", "create", "fork", "execute", "signal", "read_environment"),
        *("inherit_environment", "inherit_descriptor"),
        pytest.param("become_root", marks=pytest.mark.skipif(os.geteuid() != 0, reason="for root there is something")),
    ],
)
def test_each_attack_succeeds_where_there_is_no_sandbox(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    environment = os.environ | {"ATTACK": name, "TARGET": str(tmp_path / "file")}

    subprocess.run([sys.executable, "-c", ATTACKS + ATTACK], check=True, env=environment)
    assert f"def {name}(" in ATTACKS
