"""What the host and a zygote say to each other.

At the start the zygote reads its `Order` from its standard input. Then both send packets over a SOCK_SEQPACKET
socket: `RUN` (with two descriptors: the request, and where the reply goes) and `KILL` one way, `READY` and `END` the
other. A call is known by its slot. The bytes of requests and replies never pass through the zygote.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

RUN, KILL, READY, END = range(4)

#: Kind, slot; for `END` the wait status and flags as well.
PACKET = struct.Struct("=BHiB")

#: Flags of an `END`.
TIMED_OUT, TOO_MANY_FILES, NOT_STARTED = 1, 2, 4
#: The slot could not be made as new: this zygote is to serve no more calls.
SPOILT = 8

#: A reply is written in one piece into an empty pipe, which takes 64 kB.
MAX_REPLY_BYTES = 32 * 1024
#: Of a fault's text; in JSON a character takes up to six bytes.
MAX_DETAILS = 4000

#: The name that the grader's own frames have in a traceback.
FILE_NAME = "grader.py"


class Order(NamedTuple):
    """All that a zygote knows. It holds nothing of any request."""

    #: The descriptor of the socket.
    control: int
    #: Whom to become, or None to stay.
    user: int | None
    #: Where packages are sought, after the standard library.
    search_path: list[str]
    #: Third-party modules to import before the first call.
    preload: list[str]
    #: What a grader may read.
    readable: list[str]
    #: One for each call at a time, each a file system of its own; or empty: calls have no folder.
    folders: list[str]
    #: Calls at a time.
    num_slots: int
    wall_clock_s: float
    memory_bytes: int
    file_bytes: int
    num_files: int
    #: Processes and threads of this user, as RLIMIT_NPROC counts them.
    num_processes: int
