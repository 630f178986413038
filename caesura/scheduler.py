"""Moves jobs on: validates new ones, launches workers into free slots, mends what lost its worker; sweeps blobs and
what has expired.

It holds no truth: all it knows stands in the database, so it may be killed and started again at any time, and several
may run at once over one database.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from caesura import faults
from caesura.errors import StorageUnavailable
from caesura.executors import Executor
from caesura.faults import Point
from caesura.jobs import Job, Status
from caesura.storage import Storage
from caesura.store import Store
from caesura.store.recovery import LEASE_S
from caesura.store.reports import store_report
from caesura.validation import Fault, ValidationStopped, Validator

logger = logging.getLogger(__name__)

#: The longest time between two looks at the database; what happens in this process wakes the scheduler at once.
TICK_S = 0.5
#: The shortest: what comes in as close a row is done together.
MIN_TICK_S = 0.05
#: Jobs validated between two looks at the queue, so that many new ones do not keep a free slot waiting.
MAX_VALIDATED = 64
MAX_VALIDATING_S = 0.1
CHECKPOINT_INTERVAL_S = 2.0
SWEEP_INTERVAL_S = 60.0
#: A blob that no row names is left alone for so long: its row may be about to be written.
SWEEP_GRACE_S = 900.0
#: A stored response is kept for so long: 30 days.
RESPONSE_LIFE_S = 30 * 86_400
#: No other server launches a worker for a job in this time, unless this one says so again: a crash in between costs it.
LAUNCH_S = 5.0
#: The clock of the day was set where it moved by so much against the one that only runs.
CLOCK_SLACK_S = 1.0
#: A lease that runs for so much longer than leases do was written by another clock.
LEASE_SLACK_S = 60.0


@dataclass(slots=True)
class _Launch:
    """A worker on its way to its job."""

    job_id: str
    #: How often the job had been claimed before.
    attempt: int
    #: The job has left the queue since, so that a worker that finds it not to be had has not failed.
    is_superseded: bool = False


class Scheduler:
    """A thread. `executor` is built with the scheduler's `wake`, which it calls when a worker has ended; `lease_s` is
    what its workers ask of a lease."""

    def __init__(
        self,
        store: Store,
        storage: Storage,
        slots: int,
        executor: Callable[[Callable[[], None]], Executor],
        lease_s: float = LEASE_S,
    ) -> None:
        self._store = store
        self._storage = storage
        self._slots = slots
        self._lease_s = lease_s
        self._executor = executor(self.wake)
        #: Workers that have claimed nothing yet. Each takes a slot: it may still claim its job, whatever became of that
        #: meanwhile.
        self._starting: dict[str, _Launch] = {}
        self._validator = Validator(storage)
        #: Jobs whose large files are being read, or wait for that.
        self._validating: set[str] = set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="validation")
        self._checkpointed_at = self._swept_at = 0.0
        #: The clock of the day less the one that only runs, as of the last look.
        self._clock: float | None = None
        self._not_swept_before = 0.0
        self._stopping = False
        #: Workers that were given a job.
        self.num_started = 0
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and the workers: each saves its job and gives it back to the queue."""
        self._stopping = True
        self.wake()
        self._thread.join()
        self._validator.close()
        self._pool.shutdown(cancel_futures=True)
        self._executor.close()
        self._store.jobs.keep_reserved(self._coming(), for_s=0)

    def wake(self) -> None:
        """Look at the database now. May be called from any thread."""
        self._woken.set()

    def tick(self) -> None:
        """Everything that is to be done now, in the order in which one thing makes room for the next."""
        faults.point(Point.TICK_BEGUN)
        self._watch_clock()
        self._mend()
        faults.point(Point.TICK_MENDED)
        if self._validate(self._store.jobs.validating(MAX_VALIDATED)) > 1:
            self.wake()  # there may be more
        self._launch()
        if time.monotonic() - self._checkpointed_at > CHECKPOINT_INTERVAL_S:
            self._store.database.checkpoint()
            self._checkpointed_at = time.monotonic()
        if time.monotonic() > max(self._swept_at + SWEEP_INTERVAL_S, self._not_swept_before):
            self._store.responses.expire(time.time() - RESPONSE_LIFE_S)
            self._store.files.expire()
            self._store.uploads.expire()
            self._store.idempotency.expire()
            sweep(self._store, self._storage, SWEEP_GRACE_S)
            self._swept_at = time.monotonic()

    def _run(self) -> None:
        while not self._stopping:
            began = time.monotonic()
            try:
                self.tick()
            except Exception:  # the thread must outlive whatever one tick meets; the next tick meets it again
                logger.exception("the scheduler's tick failed; trying again")
            self._woken.wait(TICK_S)
            if not self._stopping:
                time.sleep(max(0.0, began + MIN_TICK_S - time.monotonic()))
            self._woken.clear()

    def _watch_clock(self) -> None:
        """Leases, and how old a blob is, are told by the clock of the day. When that was set they tell nothing: leases
        begin anew, and nothing is swept until what is young now has become old."""
        clock = time.time() - time.monotonic()
        if self._clock is None:
            self._store.recovery.restart_leases(self._lease_s, longer_than_s=self._lease_s + LEASE_SLACK_S)
        elif abs(clock - self._clock) > CLOCK_SLACK_S:
            logger.warning("the clock was set by %+.0f s; leases begin anew", clock - self._clock)
            self._store.recovery.restart_leases(self._lease_s)
            self._not_swept_before = time.monotonic() + SWEEP_GRACE_S
        self._clock = clock

    def _mend(self) -> None:
        for ended in self._executor.tick():
            self._store.recovery.worker_gone(ended.worker, ended.cause)
            launch = self._starting.pop(ended.worker, None)
            if launch is not None and not launch.is_superseded:
                self._store.recovery.launch_failed(launch.job_id, launch.attempt, ended.cause)
        self._store.recovery.expire_leases(self._lease_s)

    def _validate(self, jobs: list[Job]) -> int:
        """At once those whose files are small; large ones hold nobody up. Returns how many were settled."""
        valid: list[str] = []
        num_settled = 0
        began = time.monotonic()
        for job in jobs:
            if job.id in self._validating:
                continue
            if not self._validator.is_quick(job):
                self._validating.add(job.id)
                self._pool.submit(self._validate_beside, job)
                continue
            fault = self._validator.find_fault(job)
            num_settled += 1
            if fault is None:
                valid.append(job.id)
            else:
                self._refuse(job, fault)
            if time.monotonic() - began > MAX_VALIDATING_S:
                break  # the others wait for the next tick, and those that are valid do not wait for them
        if valid:
            faults.point(Point.FILES_VALIDATED)
            self._store.jobs.mark_valid(*valid)
            faults.point(Point.FILES_TOLD)
        return num_settled

    def _refuse(self, job: Job, fault: Fault) -> None:
        report = None
        if fault.report is not None:
            try:
                report = store_report(self._storage, fault.report, job.project)
            except StorageUnavailable:  # the error says what matters
                logger.exception("the report of the files of job %s was not stored", job.id)
        self._store.jobs.fail(job.id, fault.error, Status.VALIDATING_FILES, report=report)

    def _validate_beside(self, job: Job) -> None:
        try:
            fault = self._validator.find_fault(job)
            if fault is None:
                self._store.jobs.mark_valid(job.id)
            else:
                self._refuse(job, fault)
            self.wake()
        except ValidationStopped:
            logger.info("job %s: its files are validated by the next server", job.id)
        except Exception:  # as in `_run`
            logger.exception("the files of job %s were not validated; trying again", job.id)
        finally:
            self._validating.discard(job.id)

    def _launch(self) -> None:
        if self._starting:
            without = self._store.jobs.still_without(self._starting)
            self._starting = {worker: launch for worker, launch in self._starting.items() if worker in without}
            queued = self._store.jobs.still_queued({launch.job_id for launch in self._starting.values()})
            for launch in self._starting.values():
                launch.is_superseded |= launch.job_id not in queued
            self._store.jobs.keep_reserved(self._coming(), LAUNCH_S)
        # A worker whose job was taken from the queue needs a slot all the same: it may find it there again.
        slots = self._slots - sum(launch.is_superseded for launch in self._starting.values())
        starting = {launch.job_id for launch in self._starting.values()}
        for job_id, attempt in self._store.jobs.reserve(slots, LAUNCH_S, starting).items():
            faults.point(Point.LAUNCHING)
            self._starting[self._executor.start(job_id)] = _Launch(job_id, attempt)
            self.num_started += 1
            faults.point(Point.LAUNCHED)

    def _coming(self) -> list[str]:
        """The jobs that wait for a worker that is on its way."""
        return [launch.job_id for launch in self._starting.values() if not launch.is_superseded]


def sweep(store: Store, storage: Storage, grace_s: float) -> int:
    """Delete the blobs that no row names: what a crash has left, and what deleted rows have freed.

    Returns how many; those that were written in the last `grace_s` stay.
    """
    old = [key for key, age_s in storage.list() if age_s > grace_s]
    if not old:
        return 0
    faults.point(Point.SWEEP_LISTED)
    # Read after the listing: a blob whose row came meanwhile is in.
    surplus = set(old) - store.recovery.referenced_blobs()
    for key in surplus:
        logger.info("sweeping the blob %s", key)
        storage.delete(key)
        faults.point(Point.SWEEP_DELETED)
    return len(surplus)
