"""The worker's own program: `python -m caesura.worker JOB`, or `--spare` to wait, warm, for a job on standard input."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from types import FrameType

import torch

from caesura.logging import configure
from caesura.models.loading import load_base
from caesura.settings import EMBEDDED_BASE, Settings, load_settings
from caesura.storage import LocalStorage
from caesura.store import open_store
from caesura.worker.attempt import run_attempt

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
    job_id = arguments.job or _wait_for_job(settings)
    if job_id:
        storage = LocalStorage(settings.data_dir / "blobs")
        run_attempt(job_id, arguments.name, settings, store, storage, _stopping_at_sigterm())
    store.close()


def _stopping_at_sigterm() -> threading.Event:
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    return stopping


def _wait_for_job(settings: Settings) -> str:
    """Warm up, then wait. Empty when the server that might have sent a job is gone: its end of the pipe is closed."""
    # Loads the code of models, and the allocator and the threads of torch, once before it matters.
    load_base(EMBEDDED_BASE, settings.bases()[EMBEDDED_BASE], torch.float32, torch.device("cpu"))
    logger.debug("ready for a job")
    return sys.stdin.readline().strip()


if __name__ == "__main__":
    main()
