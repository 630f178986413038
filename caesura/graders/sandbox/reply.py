"""What became of a call, out of its last bytes and the zygote's word. Pure; everything in a reply is suspect."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, cast

from caesura.graders.sandbox.jail.wire import (
    MAX_DETAILS,
    MAX_REPLY_BYTES,
    NOT_STARTED,
    TIMED_OUT,
    TOO_MANY_FILES,
)
from caesura.graders.sandbox.limits import RuntimeFault, SandboxFault

#: Faults that the zygote tells of, the weightiest first.
_KINDS = {NOT_STARTED: "sandbox did not start", TIMED_OUT: "timeout", TOO_MANY_FILES: "too many files"}
#: Signals that a process brings upon itself.
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call's process ended."""

    #: As wait(2) gives it.
    status: int
    flags: int
    reply: bytes


def number_of(ending: Ending, hidden_paths: Sequence[str] = ()) -> float:
    """The grader's number. RuntimeFault if it told of a fault; SandboxFault if it told nothing that holds.

    `hidden_paths` of this machine are left out of a fault's text.
    """
    for flag, kind in _KINDS.items():
        if ending.flags & flag:
            raise SandboxFault(kind)
    if os.WIFSIGNALED(ending.status):
        number = os.WTERMSIG(ending.status)
        raise SandboxFault(f"{'crashed' if number in _CRASHES else 'killed'} (signal {number})")
    if ending.status != 0 or not ending.reply:
        raise SandboxFault("ended without a reply")
    return _parse(ending.reply, hidden_paths)


def _parse(reply: bytes, hidden_paths: Sequence[str]) -> float:
    if len(reply) > MAX_REPLY_BYTES:
        raise SandboxFault("bad reply")
    try:
        pairs = json.loads(reply.decode(), object_pairs_hook=tuple, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise SandboxFault("bad reply") from None
    if not isinstance(pairs, tuple):  # which only an object becomes; an array can look like one
        raise SandboxFault("bad reply")
    match cast(tuple[object, ...], pairs):
        case (("value", float(value)),) if math.isfinite(value):
            return value
        case (("fault", str(text)),) if len(text) <= MAX_DETAILS:
            raise RuntimeFault(_presentable(text, hidden_paths))
        case _:
            raise SandboxFault("bad reply")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _presentable(text: str, hidden_paths: Sequence[str]) -> str:
    """Without halves of characters, which no encoder takes, and without the paths."""
    text = text.encode(errors="replace").decode()
    for path in hidden_paths:
        text = text.replace(path, "...")
    return text
