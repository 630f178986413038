"""What the process of a shipment does: send the job's steps to its run as they are told, until the job rests.

Its first line of standard input says which shipment, and holds the settings' secrets: neither the environment nor a
command line has them. Its last line of standard output says why it could not go on, where it could not.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from caesura.errors import DatabaseUnavailable
from caesura.integrations.runs import Run, RunSpec, RunUnavailable, summary_of, to_point
from caesura.jobs import ACTIVE, FINAL, Job
from caesura.logging import configure
from caesura.programs import read_request, take_output
from caesura.settings import load_settings
from caesura.store import Store, open_store
from caesura.store.shipments import Shipment, Shipments

logger = logging.getLogger(__name__)

#: How often the job is looked at.
POLL_S = 1.0
#: A process that was silent for so long has lost its shipment.
HOLD_S = 15.0
#: One that has done nothing for so long is stuck in a library, and ends.
STUCK_S = 300.0
#: Steps read at once.
PAGE = 1000
MAX_CHECKPOINTS = 1000
#: Exit codes: the reason stands on standard output; it was stuck.
UNAVAILABLE, STUCK = 4, 5


class ShipmentLost(Exception):
    """Another process has the shipment in hand."""


class Hold:
    """A context: inside it a side thread keeps the shipment in this process's hand."""

    def __init__(self, shipments: Shipments, shipment: Shipment) -> None:
        self._shipments = shipments
        self._shipment = shipment
        self._step = shipment.step
        self._lost = False
        self._busy_since = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hold", daemon=True)

    def __enter__(self) -> Hold:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def advance(self, step: int) -> None:
        """All up to `step` has come. Raises ShipmentLost."""
        self._busy_since = time.monotonic()
        if step > self._step:
            self._step = step
            self._lost |= not self._shipments.keep(self._shipment, step, time.time() + HOLD_S)
        if self._lost:
            raise ShipmentLost

    def _run(self) -> None:
        while not self._ended.wait(HOLD_S / 3):
            if time.monotonic() - self._busy_since > STUCK_S:
                logger.error("nothing was sent for %.0f s: this process is stuck, and ends", STUCK_S)
                os._exit(STUCK)
            try:
                self._lost |= not self._shipments.keep(self._shipment, self._step, time.time() + HOLD_S)
            except DatabaseUnavailable:  # the row decides who has it
                logger.exception("the shipment could not be kept; trying again")


class Shipping:
    """Sends one shipment. Raises RunUnavailable, or ShipmentLost."""

    def __init__(self, store: Store, shipment: Shipment, run: Run, hold: Hold) -> None:
        self._store = store
        self._shipment = shipment
        self._run = run
        self._hold = hold
        #: The `seq` of the last event that was sent.
        self._seq = 0
        self._summary: dict[str, Any] = {}

    def ship(self, stopping: threading.Event) -> None:
        """Until the job has ended, or rests and all has come, or this process is to stop."""
        while True:
            # Looked at before its steps: what it has come to, they have been told up to.
            job = self._store.jobs.get(self._shipment.job_id)
            if self._send_steps():
                self._describe(job)
            self._hold.advance(self._run.last_step())
            if job.status not in ACTIVE or stopping.wait(POLL_S):
                break
        self._describe(job)
        self._run.close(job.status)
        self._hold.advance(self._run.last_step())
        if job.status in FINAL:
            self._store.shipments.end(self._shipment)
        else:
            self._store.shipments.rest(self._shipment)

    def _send_steps(self) -> bool:
        """Those told since the last look; whether there were any."""
        is_any = False
        while page := self._store.jobs.list_steps(self._shipment.job_id, self._seq, PAGE):
            points = [to_point(event) for _, event in page]
            self._run.log([point for point in points if point.step > self._shipment.step])
            self._hold.advance(self._run.last_step())
            self._seq = page[-1][0]
            is_any = True
        return is_any

    def _describe(self, job: Job) -> None:
        models, _ = self._store.models.list_of_job(job.id, after=None, limit=MAX_CHECKPOINTS)
        summary = summary_of(job, models)
        if summary != self._summary:
            self._run.describe(summary)
            self._summary = summary


def main(open_run: Callable[[RunSpec], Run]) -> None:
    """The program of an integration, whose runs `open_run` opens. It ends with whoever started it."""
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    request = read_request()
    output = take_output()
    shipment = Shipment(**request["shipment"])
    settings = load_settings(None, request["secrets"])
    configure(settings.log_level, f"{shipment.type} of {shipment.job_id}", _with_passwords(request["secrets"].values()))
    store = open_store(settings.data_dir, settings.secret_database_url)
    try:
        with Hold(store.shipments, shipment) as hold:
            spec = RunSpec(store.jobs.get(shipment.job_id), shipment.number, shipment.step, settings)
            Shipping(store, shipment, open_run(spec), hold).ship(stopping)
    except RunUnavailable as error:
        logger.warning("%s", error.reason, exc_info=error.__cause__)
        output.write(error.reason.encode())
        output.flush()
        os._exit(UNAVAILABLE)  # at once: a library may try for hours yet
    except ShipmentLost:
        logger.warning("another process has the shipment in hand")
    store.close()
    sys.stderr.flush()
    os._exit(0)  # libraries leave threads that nobody waits for


def _with_passwords(secrets: Iterable[str]) -> list[str]:
    """The secrets, and of those that are URLs the passwords in them."""
    return [part for secret in secrets for part in (secret, urlsplit(secret).password) if part]
