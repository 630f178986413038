"""One line a record, to standard error; the same form in every process."""

from __future__ import annotations

import logging
import sys


def configure(level: str, process: str) -> None:
    """Send records of `level` and above to standard error, marked with the name of this process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {process} %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # At INFO these tell every request to the engine and every look at the migrations: noise beside our own lines.
    for name in ("httpx", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
