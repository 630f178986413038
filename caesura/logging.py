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
    # At INFO, httpx logs every request of the API to the engine: noise beside the API's own line.
    logging.getLogger("httpx").setLevel(logging.WARNING)
