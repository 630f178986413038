"""Named places at which a test can have something go wrong: the process killed, the disk full, memory used up.

One environment variable arms them, so that child processes have it too: `CAESURA_FAULT=step.applied:kill:3` kills the
process when it reaches that place for the third time. Several are separated by commas. Unarmed, a place costs one look
at a variable.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

VARIABLE = "CAESURA_FAULT"


class Point(StrEnum):
    """Every place, in the order in which a job comes by."""

    #: A blob in the making (storage.py), whoever makes it.
    BLOB_OPENED = "blob.opened"
    BLOB_HALF = "blob.half"
    BLOB_WRITTEN = "blob.written"
    BLOB_SYNCED = "blob.synced"
    BLOB_LINKED = "blob.linked"
    BLOB_DURABLE = "blob.durable"
    #: A write transaction (store/database.py), whoever makes it.
    ROWS_WRITTEN = "rows.written"
    ROWS_COMMITTED = "rows.committed"
    #: An upload, in one piece or in parts (api/).
    UPLOAD_HALF = "upload.half"
    UPLOAD_STORED = "upload.stored"
    UPLOAD_MADE = "upload.made"
    PART_STORED = "part.stored"
    PART_MADE = "part.made"
    PARTS_JOINED = "parts.joined"
    UPLOAD_COMPLETED = "upload.completed"
    #: What is asked of a job (api/jobs.py).
    JOB_CHECKED = "job.checked"
    JOB_MADE = "job.made"
    PAUSE_ASKED = "pause.asked"
    RESUME_ASKED = "resume.asked"
    CANCEL_ASKED = "cancel.asked"
    #: The scheduler.
    TICK_BEGUN = "tick.begun"
    TICK_MENDED = "tick.mended"
    FILES_VALIDATED = "files.validated"
    FILES_TOLD = "files.told"
    LAUNCHING = "launching"
    LAUNCHED = "launched"
    SWEEP_LISTED = "sweep.listed"
    SWEEP_DELETED = "sweep.deleted"
    #: An attempt, from its claim to the first step (worker/attempt.py).
    CLAIMING = "claiming"
    CLAIMED = "claimed"
    ROWS_READ = "rows.read"
    PLAN_MADE = "plan.made"
    PLAN_RECORDED = "plan.recorded"
    BASE_LOADED = "base.loaded"
    STATE_HALF_READ = "state.half_read"
    RESTORED = "restored"
    #: A step (training/).
    REFERENCE_ASKED = "reference.asked"
    SAMPLING = "sampling"
    ANSWER_TAKEN = "answer.taken"
    GRADING = "grading"
    GRADED = "graded"
    STEP_BEGUN = "step.begun"
    FORWARD = "forward"
    GRADIENTS_MADE = "gradients.made"
    STEP_APPLIED = "step.applied"
    STEP_MEASURED = "step.measured"
    STEP_RECORDED = "step.recorded"
    #: The lease's keeper (worker/keeper.py).
    TELLING = "telling"
    TOLD = "told"
    RENEWING = "renewing"
    RENEWED = "renewed"
    #: A training state (worker/saver.py).
    SAVE_BEGUN = "save.begun"
    SAVE_HALF = "save.half"
    SAVE_STORED = "save.stored"
    SAVE_COMMITTED = "save.committed"
    SAVE_ENDED = "save.ended"
    CHECKPOINT_BEGUN = "checkpoint.begun"
    CHECKPOINT_MADE = "checkpoint.made"
    #: The ways out of an attempt.
    PAUSE_HEARD = "pause.heard"
    PAUSE_STORED = "pause.stored"
    PAUSED = "paused"
    STOP_HEARD = "stop.heard"
    STOP_STORED = "stop.stored"
    RELEASED = "released"
    TRAINED = "trained"
    MODEL_STORED = "model.stored"
    RESULTS_STORED = "results.stored"
    PUBLISHED = "published"
    FAILING = "failing"
    FAILED = "failed"


def _send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def _refuse(number: int) -> Callable[[], None]:
    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def _use_up_memory() -> None:
    raise MemoryError("no memory is left")


#: What may happen at a place.
DEEDS: dict[str, Callable[[], None]] = {
    "kill": _send(signal.SIGKILL),
    "stop": _send(signal.SIGSTOP),
    "term": _send(signal.SIGTERM),
    "full": _refuse(errno.ENOSPC),
    "readonly": _refuse(errno.EROFS),
    "oom": _use_up_memory,
}


@dataclass(slots=True)
class _Fault:
    deed: Callable[[], None]
    #: It happens when the place is reached for the `at`th time, and only then.
    at: int
    num_reached: int = 0


_armed: dict[Point, _Fault] = {}
_counting = threading.Lock()


def arm(text: str) -> None:
    """Arm this process as `CAESURA_FAULT=text` would. Raises ValueError for what is no place, deed or number."""
    _armed.clear()
    for one in filter(None, text.split(",")):
        name, deed, at = (*one.split(":"), "1")[:3]
        if deed not in DEEDS:
            raise ValueError(f"'{deed}' cannot be done at a fault point; there are {', '.join(DEEDS)}.")
        _armed[Point(name)] = _Fault(DEEDS[deed], int(at))


def point(name: Point) -> None:
    """Nothing, or what this place is armed with. Raises OSError or MemoryError where that is what goes wrong."""
    if _armed:
        _reach(name)


def halves(name: Point, data: bytes | memoryview) -> Iterator[bytes | memoryview]:
    """`data`; in two halves with the place between them where that is armed."""
    if name not in _armed:
        yield data
        return
    middle = len(data) // 2
    yield data[:middle]
    _reach(name)
    yield data[middle:]


def _reach(name: Point) -> None:
    fault = _armed.get(name)
    if fault is None:
        return
    with _counting:
        fault.num_reached += 1
        is_now = fault.num_reached == fault.at
    if is_now:
        fault.deed()


arm(os.environ.get(VARIABLE, ""))
