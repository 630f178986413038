"""Programs of our own that do one piece of work for the process that starts them: `python -m caesura…`.

The first line of standard input says what is asked, as JSON. The rest of that pipe is held open as long as whoever asks
lives, and the program ends at its end.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any, BinaryIO

_ORPHANED = 3


def read_request() -> dict[str, Any]:
    """What this program is asked. From now on the process ends with the asker."""
    request: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_asker, daemon=True).start()
    return request


def take_output() -> BinaryIO:
    """Standard output for the answer alone: what libraries print from now on goes into the log."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


def _end_with_the_asker() -> None:
    # Past Python's own buffer, which could not be closed while this waits.
    if not os.read(sys.stdin.fileno(), 1):
        os._exit(_ORPHANED)
