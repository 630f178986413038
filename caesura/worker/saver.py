"""Saves training states: blobs first, then the row under the lease. In passing (a thread of its own) or at once."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Self

from caesura.errors import CaesuraError, LeaseLost, StorageUnavailable
from caesura.jobs import Artifact, Lease, Reason, TrainingState
from caesura.storage import Storage, put_files
from caesura.store.attempts import Attempts
from caesura.training.state import State

logger = logging.getLogger(__name__)

#: Between two tries to save when the storage takes nothing, seconds; doubled up to the second number.
RETRY_S = (1.0, 30.0)


class Saver:
    """A context; one save is under way at most. `interval_s` separates the saves that are made in passing."""

    def __init__(self, attempts: Attempts, storage: Storage, lease: Lease, base_name: str, interval_s: float) -> None:
        self._attempts = attempts
        self._storage = storage
        self._lease = lease
        self._base_name = base_name
        self._interval_s = interval_s
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
        self._commit(self.store(state), reason)

    def store(self, state: State) -> TrainingState:
        """Write the blobs; the caller commits the row. Waits as long as the storage takes nothing."""
        return TrainingState(state.step, self.store_adapter(state), self._put("optimizers", state.optimizer_files()))

    def store_adapter(self, state: State) -> Artifact:
        return self._put("adapters", state.adapter_files(self._base_name))

    def _put(self, kind: str, files: dict[str, bytes]) -> Artifact:
        self.wait()
        pause_s, longest_s = RETRY_S
        while True:
            try:
                return put_files(self._storage, kind, files)
            except StorageUnavailable:
                self._attempts.status(self._lease)  # raises LeaseLost: nobody waits for this save any more
                logger.exception("the training state cannot be saved; trying again in %.0f s", pause_s)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, longest_s)

    def wait(self) -> None:
        """Wait for the save in passing to end."""
        if self._thread is not None:
            self._thread.join()

    def _try_to_save(self, state: State) -> None:
        try:
            adapter = put_files(self._storage, "adapters", state.adapter_files(self._base_name))
            optimizer = put_files(self._storage, "optimizers", state.optimizer_files())
            self._commit(TrainingState(state.step, adapter, optimizer), None)
        except LeaseLost:
            logger.info("a save came after the lease was lost; nothing was written")
        except CaesuraError:
            logger.exception("the training state of step %d was not saved; the one before it stands", state.step)

    def _commit(self, state: TrainingState, reason: Reason | None) -> None:
        for key in self._attempts.save(self._lease, state, reason):
            self._storage.delete(key)
