"""Runs attacks one after the other in one world, on one sandbox: `python -m tests.failure.sandbox.runner LEVEL`.

Reads the attacks' names from its standard input, a line each; writes a JSON object for each, and one at the end that
tells what was left over. At the level "none" there is no sandbox: an attack runs in a process of its own, and only
those run that do no harm.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from caesura.graders.sandbox import Level, Limits, RuntimeFault, Sandbox, SandboxFault, find_level
from tests.failure.sandbox import control
from tests.failure.sandbox.attack import Attack
from tests.failure.sandbox.attacks import ATTACKS
from tests.failure.sandbox.host import CHECKOUT, Host

LIMITS = Limits(wall_clock_s=1.0, memory_bytes=256 << 20, file_bytes=8 << 20)
#: A call that has not come back by then has hung the sandbox; the sandbox itself may add some seconds to its limit.
PATIENCE_S = 30.0
MOST_DETAILS_BYTES = 16 << 10

_ORDER = {Level.NONE: 0, Level.KERNEL: 1, Level.STRONG: 2}

#: Without a sandbox; the answer goes through a descriptor of its own.
_BARE = """
import json, os, sys
request = json.load(sys.stdin)
names = {"__name__": "grader"}
exec(request["source"], names)
os.write(int(sys.argv[1]), json.dumps(names["grade"](request["sample"], request["item"])).encode())
"""


@dataclass(slots=True)
class Result:
    name: str
    #: The value, or the class of the fault and what it tells.
    outcome: str
    seconds: float
    #: What the attack did to the host and to the next call.
    damage: list[str] = field(default_factory=list)


class World:
    """A sandbox, what lies around it, and how the two were before the first attack."""

    def __init__(self, sandbox: Sandbox, host: Host) -> None:
        self._sandbox = sandbox
        self._host = host
        #: import lines → what the control sees in the process that has them.
        self._expected: dict[str, dict[str, int]] = {}
        #: What earlier calls were given. Nobody but those calls may ever see it.
        self._earlier = secrets.token_hex(20)

    async def run(self, attack: Attack) -> Result:
        imports = control.import_lines(attack.source)
        if imports not in self._expected:
            self._expected[imports] = await self._look(imports)
        began_s = time.monotonic()
        neighbour = asyncio.create_task(self._neighbour(imports))
        outcome, damage = await self._attack(attack)
        seconds = time.monotonic() - began_s
        damage += [*await neighbour, *await self._control(imports), *self._host.damage(), *await self.strays()]
        return Result(attack.name, outcome, seconds, damage)

    async def strays(self) -> list[str]:
        """Processes of calls that are over; those that end get a moment to do so."""
        deadline_s = time.monotonic() + 5
        while calls := self._calls():
            if time.monotonic() > deadline_s:
                return [f"still there: {calls}"]
            await asyncio.sleep(0.01)
        return []

    async def _attack(self, attack: Attack) -> tuple[str, list[str]]:
        sample = {"host": self._host.addresses(), "earlier": taken_apart(self._earlier)}
        try:
            async with asyncio.timeout(PATIENCE_S):
                value = await self._sandbox.run(attack.source, sample, attack.item)
        except RuntimeFault as fault:
            return f"RuntimeFault: {fault.details}", _flaws(fault.details)
        except SandboxFault as fault:
            return f"SandboxFault: {fault.kind}", _flaws(fault.kind)
        except TimeoutError:
            return "hung", [f"the call had not come back after {PATIENCE_S:.0f} s"]
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:100]}", ["run() raised what it does not promise to raise"]
        is_number = type(value) is float and value - value == 0
        return repr(value), [] if is_number else [f"the value is no finite float: {value!r}"]

    async def _look(self, imports: str) -> dict[str, int]:
        try:
            await self._sandbox.run(control.source_after(imports), self._sample(0), {})
        except RuntimeFault as fault:
            return control.checksums(fault.details)
        raise AssertionError("the control expects nothing and answers")

    async def _neighbour(self, imports: str) -> list[str]:
        """What is wrong with a call that runs while an attack does."""
        x = secrets.randbelow(1000)
        answer = await self._answer(control.source_beside(imports), x, {"y": 0.5})
        return [] if answer == x + 0.5 else [f"a call beside it: {answer}"]

    async def _control(self, imports: str) -> list[str]:
        """What is wrong with the call that comes after an attack."""
        x, expected = secrets.randbelow(1000), self._expected[imports]
        answer = await self._answer(control.source_after(imports), x, {"y": 0.5, "expected": expected})
        if isinstance(answer, float) and answer < 0:
            answer = f"sees another state: {list(expected)[int(-answer) - 1]}"
        return [] if answer == x + 0.5 else [f"the next call: {answer}"]

    async def _answer(self, source: str, x: int, item: Mapping[str, Any]) -> float | str:
        """What comes of a good grader; a text if that is no number."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._sandbox.run(source, self._sample(x), item)
        except (RuntimeFault, SandboxFault) as fault:
            return repr(fault)
        except TimeoutError:
            return "hung"

    def _sample(self, x: int) -> Mapping[str, Any]:
        return {"x": x, "earlier": self._earlier, "more": [self._earlier] * 3}

    def _calls(self) -> list[str]:
        """The processes below the zygotes, which are children of this process or of a bubblewrap's that is."""
        zygotes: list[psutil.Process] = []
        for child in psutil.Process().children():
            if child.pid != self._host.victim_pid:
                with suppress(psutil.NoSuchProcess):
                    zygotes += child.children() if child.name() == "bwrap" else [child]
        return [repr(call) for zygote in zygotes for call in _children(zygote)]


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def taken_apart(text: str) -> Mapping[str, Any]:
    """`text` for those who look for it in memory: nowhere in one piece, lest they find what they look with."""
    return {"start": text[:6], "rest": text[6:], "masked": [ord(letter) + 1000 for letter in text]}


def _flaws(text: str) -> list[str]:
    """What is wrong with the text of a fault, which users get to see."""
    flaws = [f"the text names {path}" for path in (sys.base_prefix, str(CHECKOUT)) if path in text]
    size = len(text.encode(errors="surrogatepass"))
    if size > MOST_DETAILS_BYTES:
        flaws.append(f"the text has {size} bytes")
    try:
        text.encode()
    except UnicodeEncodeError:
        flaws.append("the text cannot be encoded")
    return flaws


def _run_bare(attack: Attack, host: Host) -> Result:
    """Without a sandbox."""
    sample = {"host": host.addresses(), "earlier": taken_apart("")}
    request = json.dumps({"source": attack.source, "sample": sample, "item": attack.item})
    read, write = os.pipe()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.run(
            [sys.executable, "-I", "-c", _BARE, str(write)],
            input=request.encode(),
            capture_output=True,
            cwd=folder,
            pass_fds=[write],
            timeout=PATIENCE_S,
        )
    os.close(write)
    with open(read, "rb") as file:
        outcome = file.read().decode() or child.stderr.decode(errors="replace")
    return Result(attack.name, outcome, time.monotonic() - began_s, host.damage())


async def _run_all(level: Level, attacks: list[Attack], host: Host) -> None:
    num_fds = psutil.Process().num_fds()
    sandbox = Sandbox(level, LIMITS, num_workers=2)
    world = World(sandbox, host)
    for attack in attacks:
        _tell(asdict(await world.run(attack)))
    await sandbox.close()
    left = [repr(child) for child in psutil.Process().children() if child.pid != host.victim_pid]
    _tell({"left": [*left, *(["open descriptors"] if psutil.Process().num_fds() > num_fds else [])]})


def _tell(record: Mapping[str, Any]) -> None:
    print(json.dumps(record), flush=True)  # noqa: T201


def main() -> None:
    level = Level(sys.argv[1])
    attacks = [ATTACKS[line.rstrip("\n")] for line in sys.stdin]
    with tempfile.TemporaryDirectory(prefix="caesura-attacks-") as folder, Host(Path(folder)) as host:
        if level == Level.NONE:
            for attack in attacks:
                _tell(asdict(_run_bare(attack, host)))
        elif _ORDER[found := find_level()] < _ORDER[level]:
            _tell({"unreachable": f"find_level() says that this machine reaches the level '{found}' only"})
        else:
            asyncio.run(_run_all(level, attacks, host))


if __name__ == "__main__":
    main()
