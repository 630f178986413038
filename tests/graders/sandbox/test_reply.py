from __future__ import annotations

import json
import signal

import pytest

from caesura.graders.sandbox.jail.wire import (
    MAX_DETAILS,
    MAX_REPLY_BYTES,
    NOT_STARTED,
    SPOILT,
    TIMED_OUT,
    TOO_MANY_FILES,
)
from caesura.graders.sandbox.limits import RuntimeFault, SandboxFault
from caesura.graders.sandbox.reply import Ending, number_of

EXIT_1 = 1 << 8


def read(reply: bytes, status: int = 0, flags: int = 0) -> float:
    return number_of(Ending(status, flags, reply), ["/home/me/python", "/home/me"])


@pytest.mark.parametrize(
    ("reply", "value"), [(b'{"value": 0.25}', 0.25), (b'{"value": -1e300}', -1e300), (b'{"value": 1.0}', 1.0)]
)
def test_a_number_is_taken(reply: bytes, value: float) -> None:
    assert read(reply) == value
    assert read(reply, flags=SPOILT) == value


@pytest.mark.parametrize(
    "reply",
    [
        b'{"value": NaN}',
        b'{"value": Infinity}',
        b'{"value": 1e999}',
        b'{"value": 1}',
        b'{"value": true}',
        b'{"value": "1.0"}',
        b'{"value": null}',
        b'{"value": [1.0]}',
        b'{"value": {"value": 1.0}}',
        b'{"value": 1.0, "more": 1}',
        b'{"value": 1.0, "value": 2.0}',
        b'{"value": 1.0} {"value": 1.0}',
        b'{"value": 1.0}\x00',
        b'[["value", 1.0]]',
        b'["value", 1.0]',
        b'{"value": ' + b"9" * 5000 + b"}",
        b'{"value": 0.' + b"1" * MAX_REPLY_BYTES + b"}",
        b"[" * 20_000,
        b'{"a":' * 6000,
        b"1.0",
        b"value",
        b"\xff\xfe",
        b"{}",
        b'{"fault": 1.0}',
        b'{"fault": "' + b"x" * (MAX_DETAILS + 1) + b'"}',
    ],
)
def test_anything_else_is_a_bad_reply(reply: bytes) -> None:
    with pytest.raises(SandboxFault) as raised:
        read(reply)
    assert raised.value.kind == "bad reply"


@pytest.mark.parametrize(
    ("status", "flags", "kind"),
    [
        (signal.SIGKILL, TIMED_OUT, "timeout"),
        (signal.SIGKILL, TOO_MANY_FILES, "too many files"),
        (0, TOO_MANY_FILES, "too many files"),
        (0, NOT_STARTED | SPOILT, "sandbox did not start"),
        (signal.SIGKILL, 0, "killed (signal 9)"),
        (signal.SIGSYS, 0, "killed (signal 31)"),
        (signal.SIGSEGV, 0, "crashed (signal 11)"),
        (signal.SIGABRT | 0x80, 0, "crashed (signal 6)"),
        (EXIT_1, 0, "ended without a reply"),
    ],
)
def test_how_it_ended_counts_more_than_what_it_said(status: int, flags: int, kind: str) -> None:
    with pytest.raises(SandboxFault) as raised:
        read(b'{"value": 1.0}', status, flags)
    assert raised.value.kind == kind


def test_saying_nothing_is_a_fault() -> None:
    with pytest.raises(SandboxFault) as raised:
        read(b"")
    assert raised.value.kind == "ended without a reply"


def test_a_faults_text_is_the_graders_without_the_machines_paths() -> None:
    text = "ImportError: (/home/me/python/lib/x.py, /home/me/y) in 'ä'"
    with pytest.raises(RuntimeFault) as raised:
        read(json.dumps({"fault": text}).encode())
    assert raised.value.details == "ImportError: (.../lib/x.py, .../y) in 'ä'"
    assert str(raised.value) == raised.value.details


def test_half_a_character_does_not_go_on_to_who_must_encode_it() -> None:
    with pytest.raises(RuntimeFault) as raised:
        read(b'{"fault": "a\\ud800b"}')
    assert raised.value.details == "a?b"
