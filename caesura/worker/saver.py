"""Saves training states: blobs first, then the row under the lease. In passing (a thread of its own) or at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from caesura import faults
from caesura.errors import CaesuraError, LeaseLost
from caesura.faults import Point
from caesura.jobs import Artifact, Lease, Reason, TrainingState
from caesura.storage import Content, Storage, put_files
from caesura.store.attempts import Attempts
from caesura.training.state import State
from caesura.worker.patience import patiently

logger = logging.getLogger(__name__)


class Saver:
    """A context; one save is under way at most. `interval_s` separates the saves that are made in passing.

    `tell`: called before a state is committed in passing, so that the steps up to it have been told by then.
    """

    def __init__(
        self,
        attempts: Attempts,
        storage: Storage,
        lease: Lease,
        base_name: str,
        interval_s: float,
        tell: Callable[[], None],
    ) -> None:
        self._attempts = attempts
        self._storage = storage
        self._lease = lease
        self._base_name = base_name
        self._interval_s = interval_s
        self._tell = tell
        self._last_began = time.monotonic()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()  # a thread that is in native code while the interpreter ends would abort the process

    @property
    def due(self) -> bool:
        busy = self._thread is not None and self._thread.is_alive()
        return not busy and time.monotonic() - self._last_began >= self._interval_s

    def save_in_passing(self, state: State) -> None:
        """Begin to save; the caller goes on. A failure is logged and the next save tries again."""
        self._last_began = time.monotonic()
        self._thread = threading.Thread(target=self._try_to_save, args=(state,), name="saver", daemon=True)
        self._thread.start()

    def save(self, state: State, reason: Reason) -> None:
        """Save at once, with a model made of the state."""
        stored = self.store(state)
        patiently(self._attempts, self._lease, lambda: self._commit(stored, reason))

    def store(self, state: State) -> TrainingState:
        """Write the blobs; the caller commits the row. Waits as long as the storage takes nothing."""
        return TrainingState(state.step, self.store_adapter(state), self._put("optimizers", state.optimizer_files()))

    def store_adapter(self, state: State) -> Artifact:
        return self._put("adapters", state.adapter_files(self._base_name))

    def _put(self, kind: str, files: Mapping[str, Content]) -> Artifact:
        self.wait()
        return patiently(self._attempts, self._lease, lambda: put_files(self._storage, kind, files))

    def wait(self) -> None:
        """Wait for the save in passing to end."""
        if self._thread is not None:
            self._thread.join()

    def _try_to_save(self, state: State) -> None:
        faults.point(Point.SAVE_BEGUN)
        try:
            adapter = put_files(self._storage, "adapters", state.adapter_files(self._base_name))
            faults.point(Point.SAVE_HALF)
            optimizer = put_files(self._storage, "optimizers", state.optimizer_files())
            # A worker that dies after the commit begins behind these steps, and would never tell them.
            self._tell()
            self._commit(TrainingState(state.step, adapter, optimizer), None)
        except LeaseLost:
            logger.info("a save came after the lease was lost; nothing was written")
        except CaesuraError:
            logger.exception("the training state of step %d was not saved; the one before it stands", state.step)

    def _commit(self, state: TrainingState, reason: Reason | None) -> None:
        faults.point(Point.SAVE_STORED)
        freed = self._attempts.save(self._lease, state, reason)
        faults.point(Point.SAVE_COMMITTED)
        for key in freed:
            self._storage.delete(key)
        faults.point(Point.SAVE_ENDED)
