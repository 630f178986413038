"""The worker's own program: `python -m caesura.worker JOB`, or `--spare` to wait, warm, for a job on standard input."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from types import FrameType

from caesura.logging import configure
from caesura.models.loading import LoadBase, load_base
from caesura.settings import Settings, load_settings
from caesura.storage import LocalStorage
from caesura.store import Store, open_store
from caesura.worker.attempt import run_attempt
from caesura.worker.warm import warm_up

logger = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(prog="caesura worker", description="Make one attempt at one job.")
    parser.add_argument("job", nargs="?", help="the job's id")
    parser.add_argument("--name", default=f"worker-{os.getpid()}", help="how the job's row names this process")
    parser.add_argument("--spare", action="store_true", help="get ready, then read the job's id from standard input")
    arguments = parser.parse_args()
    if arguments.spare == bool(arguments.job):
        parser.error("name a job, or give --spare")
    settings = load_settings(None, {})
    configure(settings.log_level, arguments.name)
    store = open_store(settings.data_dir, settings.secret_database_url)
    job_id, load = (arguments.job, load_base) if arguments.job else _wait_for_job(settings, store)
    if job_id:
        storage = LocalStorage(settings.data_dir / "blobs")
        run_attempt(job_id, arguments.name, settings, store, storage, _stopping_at_sigterm(), load)
    store.close()


def _stopping_at_sigterm() -> threading.Event:
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    return stopping


def _wait_for_job(settings: Settings, store: Store) -> tuple[str, LoadBase]:
    """Warm up, then wait for the job's id, and how its base is to be loaded.

    Empty when the server that might have sent a job is gone: its end of the pipe is closed.
    """
    warm = warm_up(settings, store.jobs.base_in_demand())
    logger.debug("ready for a job, with the base '%s'", warm.base.name)
    return sys.stdin.readline().strip(), warm.load


if __name__ == "__main__":
    main()
