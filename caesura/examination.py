"""What torch and a base model have to say, for a process that does not import torch: a child of its own is asked."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

#: Importing torch and transformers takes seconds; reaching a hub may take for ever.
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found."""

    has_gpu: bool
    #: The names of those that adapters may be put on; None where the base cannot be read.
    layers: list[str] | None


class Examiner:
    """Remembers what it was told. May be used from any thread; one child is asked at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, Examined] = {}

    def examine(self, name: str, path: str) -> Examined | None:
        """The base model `name` at `path`, a folder or a hub id; None where that cannot be told here and now."""
        with self._lock:
            if path not in self._found:
                examined = _ask(name, path)
                if examined is None or examined.layers is None:
                    return examined  # it may heal
                self._found[path] = examined
            return self._found[path]


def _ask(name: str, path: str) -> Examined | None:
    command = [sys.executable, "-m", "caesura.models.examine"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # what it died before reading would be flushed, and fail, once more when the pipe is closed
        start_new_session=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        watch = threading.Timer(TIMEOUT_S, child.kill)
        watch.start()
        try:
            child.stdin.write(json.dumps({"name": name, "path": path}).encode() + b"\n")
            reply = child.stdout.read()
            child.wait()  # it ends with whoever holds its standard input
        except BrokenPipeError:  # it has died already: told below
            reply = b""
        finally:
            watch.cancel()
    if child.returncode != 0:
        logger.error("the process that examines the base model '%s' ended with status %d", name, child.returncode)
        return None
    found: dict[str, Any] = json.loads(reply)
    return Examined(**found)
