"""Has jobs' steps sent to their integrations: a process for each shipment that has something to send.

It holds no truth: what is due, and how far it has come, stands in the database, so it may be killed and started again
at any time, and several may run at once.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from caesura.errors import NotFound
from caesura.executors import describe_exit
from caesura.integrations.kinds import KINDS, offered
from caesura.integrations.shipping import HOLD_S, UNAVAILABLE
from caesura.jobs import FINAL, Level, Told
from caesura.settings import Settings
from caesura.store import Store
from caesura.store.rows import Telling
from caesura.store.shipments import Shipment

logger = logging.getLogger(__name__)

#: The longest time between two looks at the database.
TICK_S = 1.0
#: Processes at once; further shipments wait for one to end.
NUM_AT_ONCE = 8
#: The wait before the second try; it doubles from try to try up to the second number, and a random half is left out.
MIN_BACKOFF_S, MAX_BACKOFF_S = 5.0, 600.0
#: Of a job that has ended.
GIVEN_UP_S = 72 * 3600.0
#: What a process may take to send what it has when the server stops; its successor sends the rest.
GRACE_S = 10.0
_ENVIRONMENT = {
    # They tell their makers nothing.
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # And write no log but ours.
    "WANDB_SILENT": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
}


@dataclass(frozen=True, slots=True)
class _Child:
    shipment: Shipment
    process: subprocess.Popen[bytes]


class Shipper:
    """A thread. `clock` gives Unix seconds; `programs` is the package of the integrations' programs."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        programs: str = "caesura.integrations",
    ) -> None:
        self._programs = programs
        self._store = store
        self._settings = settings
        self._types = offered(settings)
        self._clock = clock
        self._jitter = jitter
        self._children: list[_Child] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shipper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and the processes, which send what they have in hand."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        for child in self._children:
            child.process.send_signal(signal.SIGTERM)
        give_up_at = time.monotonic() + GRACE_S
        for child in self._children:
            try:
                child.process.wait(max(0.0, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            self._settle(child)
        self._children = []

    def tick(self) -> None:
        """Settle what has ended, and start what is due."""
        ended = [child for child in self._children if child.process.poll() is not None]
        self._children = [child for child in self._children if child not in ended]
        for child in ended:
            self._settle(child)
        room = NUM_AT_ONCE - len(self._children)
        for shipment in self._store.shipments.claim(self._clock(), HOLD_S, self._types, room):
            if self._has_a_run(shipment):
                self._children.append(self._start(shipment))
            else:
                self._store.shipments.end(shipment)

    def _run(self) -> None:
        while not self._stopping.wait(TICK_S):
            try:
                self.tick()
            except Exception:  # the thread must outlive whatever one tick meets; the next tick meets it again
                logger.exception("integrations could not be served; trying again")

    def _has_a_run(self, shipment: Shipment) -> bool:
        """A job that has ended without a step, or was deleted, has none."""
        try:
            return self._store.jobs.get(shipment.job_id).step > 0
        except NotFound:
            return False

    def _start(self, shipment: Shipment) -> _Child:
        process = subprocess.Popen(
            [sys.executable, "-m", f"{self._programs}.{shipment.type}"],
            env=_environment(self._settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # what it died before reading would be flushed, and fail, once more when the pipe is closed
            start_new_session=True,  # Ctrl-C is for the server, which ends this process
        )
        request = {"shipment": asdict(shipment), "secrets": _secrets(self._settings, shipment.type)}
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has died already: settled at the next tick
            process.stdin.write(json.dumps(request).encode() + b"\n")
        return _Child(shipment, process)

    def _settle(self, child: _Child) -> None:
        """Of a process that has ended. One that has done its work has written so itself."""
        with child.process as process:
            assert process.stdout is not None
            said = process.stdout.read().decode(errors="replace")
        if process.returncode == 0:
            return
        if self._stopping.is_set():  # it was not done in time: the next server goes on with it
            self._store.shipments.rest(child.shipment)
            return
        is_told = process.returncode == UNAVAILABLE
        reason = said if is_told else f"its client ended ({describe_exit(process.returncode)})"
        self._put_off(child.shipment, reason)

    def _put_off(self, shipment: Shipment, reason: str) -> None:
        backoff_s = min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2.0 ** min(shipment.num_tries, 20))
        retry_at = self._clock() + backoff_s * (1 + self._jitter()) / 2
        title = KINDS[shipment.type].title
        try:
            job = self._store.jobs.get(shipment.job_id)
        except NotFound:
            self._store.shipments.end(shipment)
            return
        logger.warning("%s of job %s: %s; trying again", title, job.id, reason)
        if job.status in FINAL and retry_at > (job.finished_at or 0) + GIVEN_UP_S:
            text, key = Told.INTEGRATION_GIVEN_UP, f"integration:{shipment.number}:given up"
            self._store.shipments.end(shipment, _warn(text, title, reason, key))
        else:
            text, key = Told.INTEGRATION_PUT_OFF, f"integration:{shipment.number}:put off"
            self._store.shipments.put_off(shipment, retry_at, _warn(text, title, reason, key))


def _warn(text: str, title: str, reason: str, key: str) -> Telling:
    return Telling(text.format(title=title, reason=reason), Level.WARN, key=key)


def _secrets(settings: Settings, type: str) -> dict[str, str]:
    """What the process of an integration may know of what no environment holds."""
    name = KINDS[type].secret
    secret = None if name is None else getattr(settings, name)
    return {} if name is None or secret is None else {name: secret.get_secret_value()}


def _environment(settings: Settings) -> dict[str, Any]:
    """Without the secrets that are set there, and without what would lead the libraries elsewhere."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_RUN", "CAESURA_"))
    }
    return {**own, **settings.to_environment(), **_ENVIRONMENT}
