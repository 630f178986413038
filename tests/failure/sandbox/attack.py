"""What an attack is, and the three ways to write one: to be refused, to be stopped, to do no harm."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from caesura.graders.sandbox import Level
from tests.failure.sandbox.syscalls import NUMBERS

BOTH_LEVELS = frozenset({Level.STRONG, Level.KERNEL})

#: Regular expressions for the text of what came of a call, as `runner.py` writes it. A call that must not be made at
#: all may fail, or end the process (SIGSYS, 31).
REFUSED = r"0\.0|SandboxFault: .*\(signal 31\)"
STOPPED = r"SandboxFault: .+"
FAULT = r"(RuntimeFault|SandboxFault): .+"
ANYTHING = r".+"

_IMPORTS = "import ctypes, errno, os, signal, socket, struct, sys, threading, time"

#: `call` makes a system call by its name; a whole number is passed as a machine's word.
SYSCALL = f"""
{_IMPORTS}
NUMBERS = {NUMBERS!r}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def call(name, *args):
    words = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
    return result
"""

_REFUSED = """
def attack(host, item):
{body}

def grade(sample, item):
    try:
        attack(sample["host"], item)
    except {refusals}:
        return 0.0
    return 1.0
"""


@dataclass(frozen=True, slots=True)
class Attack:
    """A grader that means harm, and what must come of it."""

    #: What it does, in the third person.
    name: str
    source: str
    #: A regular expression that the whole of what came of it must match.
    outcome: str
    item: Mapping[str, Any] = field(default_factory=dict)
    #: The levels at which it must come to that.
    levels: frozenset[Level] = BOTH_LEVELS
    #: Whether it returns 1 where nothing holds it, without harm to the machine: else it cannot count as refused.
    is_real: bool = False


def refused(name: str, body: str, *, refusals: str = "OSError", prelude: str = _IMPORTS, **more: Any) -> Attack:
    """Tries `body`, the statements of a function of `host` (`Host.addresses`) and `item`; one of the exceptions
    `refusals` must come of it."""
    body = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    source = textwrap.dedent(prelude) + _REFUSED.format(body=body, refusals=refusals)
    return Attack(name, source, **{"outcome": REFUSED, "is_real": True} | more)


def stopped(name: str, source: str, outcome: str = STOPPED, **more: Any) -> Attack:
    """Takes what it can get, until the sandbox ends it."""
    return Attack(name, _IMPORTS + "\n" + textwrap.dedent(source).strip() + "\n", outcome, **more)


def harmless(name: str, source: str, outcome: str = ANYTHING, **more: Any) -> Attack:
    """May come to whatever it likes, if the host and the next call see nothing of it."""
    return stopped(name, source, outcome, **more)
