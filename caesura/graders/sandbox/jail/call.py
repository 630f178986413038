"""One call, in a process of its own: it takes its request, locks itself in, grades, replies and ends."""

from __future__ import annotations

import ctypes
import json
import linecache
import math
import mmap
import os
import resource
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any, NamedTuple, NoReturn, cast

from caesura.graders.sandbox.jail.kernel import Domain, die_with_parent, install_filter
from caesura.graders.sandbox.jail.wire import FILE_NAME, MAX_DETAILS

#: Where the reply goes; above it nothing is open.
_REPLY = 3
#: Given back when the grader has used up its memory, so that this can be told.
_SPARE_BYTES = 4 * 2**20


class Cell(NamedTuple):
    """How a call of one slot is confined; made once by the zygote, so that a call has little to do."""

    #: The process that it is forked from.
    zygote: int
    domain: Domain
    filter: ctypes.Structure
    #: (resource, limit), soft and hard alike.
    limits: list[tuple[int, int]]
    #: The call's own folder, empty; or None, and it may write nowhere.
    folder: str | None


def serve(request: int, reply: int, cell: Cell) -> NoReturn:
    """Reads the descriptor `request`, writes the answer to `reply` and ends this process. Never returns or raises."""
    status = 1
    try:
        # Read while nothing is locked, parsed when everything is.
        text = os.pread(request, os.fstat(request).st_size, 0)
        _lock(reply, cell)
        os.write(_REPLY, answer(text))
        status = 0
    finally:
        os._exit(status)  # threads, exit handlers and destructors of the grader get no turn


def _lock(reply: int, cell: Cell) -> None:
    die_with_parent(signal.SIGKILL)
    if os.getppid() != cell.zygote:
        raise RuntimeError("the zygote died before this was tied to it")
    _move_in(cell.folder)
    _open_null()
    cell.domain.enter()
    os.dup2(reply, _REPLY)
    os.closerange(_REPLY + 1, 2**31 - 1)
    for kind, limit in cell.limits:
        resource.setrlimit(kind, (limit, limit))
    install_filter(cell.filter)


def _open_null() -> None:
    # Opened anew: the zygote's is one open file with that of all its calls, and its flags would be a trace left behind.
    null = os.open("/dev/null", os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)


def _move_in(folder: str | None) -> None:
    # Without a folder HOME is one that exists and cannot be written: packages look for their data there.
    os.environ["HOME"] = folder or "/"
    os.environ.pop("PWD", None)
    os.chdir(folder or "/")
    if folder is not None:
        os.environ["TMPDIR"] = folder


def answer(request: bytes) -> bytes:
    """The JSON text of `{"value": …}` or `{"fault": …}` for that of `{"source": …, "sample": …, "item": …}`."""
    spare = mmap.mmap(-1, _SPARE_BYTES)
    try:
        fields = json.loads(request)
        return json.dumps({"value": _grade(fields["source"], fields["sample"], fields["item"])}).encode()
    except BaseException as error:
        spare.close()
        return json.dumps({"fault": _describe(error)}).encode()


class _BadSource(Exception):
    """The source or its result is not what it has to be; the text says why."""


def _grade(source: str, sample: Any, item: Any) -> float:
    # Classes look for their module by name (dataclasses, typing); a traceback looks for the lines.
    module = sys.modules["grader"] = ModuleType("grader")
    linecache.cache[FILE_NAME] = (len(source), None, source.splitlines(keepends=True), FILE_NAME)
    exec(compile(source, FILE_NAME, "exec", dont_inherit=True), module.__dict__)
    grade = module.__dict__.get("grade")
    if not callable(grade):
        raise _BadSource("The source defines no function grade(sample, item).")
    return _number(grade(sample, item))


def _number(value: Any) -> float:
    """`value` as a finite float; of numpy's too. Types are looked at: what an object says of itself may be a lie."""
    number = _float(value.item() if type(value).__module__ == "numpy" else value)
    if number is None:
        raise _BadSource(f"grade() returned a value of type {type(value).__name__[:100]}, not a number.")
    if not math.isfinite(number):
        raise _BadSource(f"grade() returned {number}, not a finite number.")
    return number


def _float(value: object) -> float | None:
    if issubclass(type(value), float):
        return float.__float__(cast(float, value))
    if not issubclass(type(value), int):
        return None
    try:
        return int.__float__(cast(int, value))
    except OverflowError:
        raise _BadSource("grade() returned an integer too large for a floating-point number.") from None


def _describe(error: BaseException) -> str:
    """What is shown of a fault: the grader's own frames and the exceptions, shortened in the middle."""
    if type(error) is _BadSource:
        return str(error)
    text = type(error).__name__
    with suppress(BaseException):  # the exception is the grader's object, and may do anything
        described = traceback.TracebackException.from_exception(error, compact=True)
        for part in _chain(described):
            part.stack = traceback.StackSummary.from_list([line for line in part.stack if line.filename == FILE_NAME])
        text = "".join(described.format())
    if len(text) > MAX_DETAILS:
        half = MAX_DETAILS // 2 - 5
        text = f"{text[:half]}\n [...] \n{text[-half:]}"
    return text


def _chain(described: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    waiting = [described]
    while waiting:
        part = waiting.pop()
        yield part
        others = [part.__cause__, part.__context__, *(part.exceptions or [])]
        waiting.extend(other for other in others if other is not None)
