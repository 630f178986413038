"""Keeps a lease while the main thread trains: renews it, hears what is asked of the job, tells the metrics."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Self

from caesura import faults
from caesura.errors import DatabaseUnavailable, LeaseLost
from caesura.faults import Point
from caesura.jobs import Lease, Level, Status
from caesura.store.attempts import Attempts
from caesura.store.rows import Telling
from caesura.training.trainer import StepResult

logger = logging.getLogger(__name__)

#: How often the side thread looks at the job. A pause is heard after at most this long.
BEAT_S = 0.2


class Keeper:
    """A context: inside it a side thread holds the lease. Every method may raise LeaseLost."""

    def __init__(self, attempts: Attempts, lease: Lease, lease_s: float) -> None:
        self._attempts = attempts
        self._lease = lease
        self._lease_s = lease_s
        self._renewed_at = time.monotonic()
        self._status = Status.RUNNING
        self._lost = False
        self._ended = threading.Event()
        self._pending: list[StepResult] = []
        self._finish_at = 0
        # Held while steps are told, so that the two threads tell them in order.
        self._telling = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def pause_asked(self) -> bool:
        return self._status is Status.PAUSING

    def check(self) -> None:
        """Raises LeaseLost when the lease is known to be gone."""
        if self._lost:
            raise LeaseLost

    def record(self, result: StepResult, finish_at: int) -> None:
        """Have the step's metrics told soon; `finish_at` is the estimated end of the job, Unix seconds."""
        self._pending.append(result)
        self._finish_at = finish_at

    def flush(self) -> None:
        """Tell now what is left to tell: events that follow must stand behind it."""
        self.check()
        with self._telling:
            results = list(self._pending)
            if results:
                tellings = [telling for result in results for telling in to_tellings(result)]
                rollouts = [rollout for result in results if result.details for rollout in result.details.rollouts]
                faults.point(Point.TELLING)
                took_s = {_key(result): result.train_s for result in results if result.train_s}
                self._attempts.record_steps(self._lease, results[-1].step, tellings, self._finish_at, rollouts, took_s)
                faults.point(Point.TOLD)
                del self._pending[: len(results)]

    def _run(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self._beat()
            except LeaseLost:
                self._lost = True
                return
            except DatabaseUnavailable:
                # What is pending stays so; the lease decides what becomes of us.
                logger.exception("the job could not be reached; trying again")

    def _beat(self) -> None:
        self.flush()
        if time.monotonic() - self._renewed_at > self._lease_s / 3:
            faults.point(Point.RENEWING)
            self._status = self._attempts.renew(self._lease, self._lease_s)
            self._renewed_at = time.monotonic()
            faults.point(Point.RENEWED)
        else:
            self._status = self._attempts.status(self._lease)


def to_tellings(result: StepResult) -> list[Telling]:
    """The step's metric event and its warnings, told once however often the step is replayed."""
    told = Telling(result.message(), data=result.data(), type="metrics", key=_key(result))
    warnings = [] if result.details is None else result.details.warnings
    return [
        told,
        *(Telling(warning, Level.WARN, key=f"alert:{result.step}:{number}") for number, warning in enumerate(warnings)),
    ]


def _key(result: StepResult) -> str:
    """Under which the step is told once."""
    return f"step:{result.step}"
