"""One line a record, to standard error; the same form in every process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection


class _Discreet(logging.Formatter):
    """Leaves out secrets, whoever wrote them into a record."""

    def __init__(self, form: str, secrets: Collection[str]) -> None:
        super().__init__(form)
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return line


def configure(level: str, process: str, secrets: Collection[str] = ()) -> None:
    """Send records of `level` and above to standard error, marked with the name of this process and without secrets."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Discreet(f"%(asctime)s %(levelname)s {process} %(name)s: %(message)s", secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # At INFO these tell every request to the engine and every look at the migrations: noise beside our own lines.
    for name in ("httpx", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
