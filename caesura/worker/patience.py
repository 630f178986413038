"""What heals by itself is waited for: a full disk, a read-only folder, a database that somebody has locked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from caesura.errors import DatabaseUnavailable, StorageUnavailable
from caesura.jobs import Lease
from caesura.store.attempts import Attempts

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Between two tries, seconds; doubled up to the second number.
RETRY_S = (1.0, 30.0)


def patiently(attempts: Attempts, lease: Lease, do: Callable[[], T]) -> T:
    """Do it, again and again for as long as the storage or the database takes nothing; what it does is whole or not.

    Raises LeaseLost once the job is no longer this worker's: nobody waits for it then.
    """
    pause_s, longest_s = RETRY_S
    while True:
        try:
            return do()
        except (StorageUnavailable, DatabaseUnavailable):
            logger.exception("job %s: nothing can be written; trying again in %.0f s", lease.job_id, pause_s)
        with suppress(DatabaseUnavailable):
            attempts.status(lease)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, longest_s)
