"""The seccomp filter of a call, as a classic BPF program. Pure.

The program is a binary search over runs of numbers with the same verdict. Every block of it ends in a RET, so that
blocks are put together without labels. Layout of the data: `struct seccomp_data` of include/uapi/linux/seccomp.h.
"""

from __future__ import annotations

import errno
import struct

from caesura.graders.sandbox.jail.syscalls import Architecture

#: (code, jump if true, jump if false, operand): `struct sock_filter` of include/uapi/linux/filter.h.
Instruction = tuple[int, int, int, int]
Block = list[Instruction]

LOAD, AND, JUMP_EQUAL, JUMP_AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06

KILL, ALLOW, ERRNO = 0x80000000, 0x7FFF0000, 0x00050000

_NUMBER, _AUDIT, _ARGUMENTS = 0, 4, 16

#: glibc's and musl's flags for a new thread, exactly: without CLONE_THREAD it would be a process, with CLONE_NEW* a
#: namespace (include/uapi/linux/sched.h).
_THREAD_FLAGS = (0x3D0F00, 0x7D0F00)
#: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
#: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC. No locks: libraries are shared with the host, and a
#: lock on them would be one on the host's.
_FCNTLS = (0, 1, 2, 3, 4, 1030)
#: PR_SET_NAME, PR_GET_NAME.
_PRCTLS = (15, 16)
#: O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, and __O_TMPFILE, whose values the two architectures share.
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20000000


def _return(verdict: int) -> Block:
    return [(RETURN, 0, 0, verdict)]


_ALLOWED, _REFUSED, _UNKNOWN = _return(ALLOW), _return(ERRNO | errno.EPERM), _return(ERRNO | errno.ENOSYS)
_KILLED = _return(KILL)


def _load(index: int, *, upper: bool = False) -> Instruction:
    """One half of an argument; both architectures are little-endian."""
    return (LOAD, 0, 0, _ARGUMENTS + 8 * index + 4 * upper)


def _among(index: int, values: tuple[int, ...]) -> Block:
    """Allows an argument of 32 bits (the kernel ignores its upper half) that is one of `values`."""
    tests = [instruction for value in values for instruction in ((JUMP_EQUAL, 0, 1, value), *_ALLOWED)]
    return [_load(index), *tests, *_REFUSED]


def _without(index: int, mask: int) -> Block:
    """Allows an argument of 32 bits that has none of the bits of `mask`."""
    return [_load(index), (AND, 0, 0, mask), (JUMP_EQUAL, 0, 1, 0), *_ALLOWED, *_REFUSED]


def _only_own_limits() -> Block:
    """Allows prlimit64(0, …, NULL, …): to read one's own limits."""
    block: Block = _ALLOWED
    for load in (_load(2, upper=True), _load(2), _load(0)):
        block = [load, (JUMP_EQUAL, 0, len(block), 0), *block, *_REFUSED]
    return block


def _blocks(architecture: Architecture, has_files: bool) -> dict[int, Block]:
    """What is to be done with each number; all others are refused."""
    checks = {
        "open": _without(1, _WRITING),
        "openat": _without(2, _WRITING),
        "ioctl": _among(1, _IOCTLS),
        "fcntl": _among(1, _FCNTLS),
        "prctl": _among(0, _PRCTLS),
        "prlimit64": _only_own_limits(),
        "sched_getaffinity": _among(0, (0,)),
        "clone": _among(0, _THREAD_FLAGS),
    }
    files = architecture.files if has_files else {}
    return (
        {number: checks[name] for name, number in architecture.checked.items()}
        | dict.fromkeys([*architecture.always.values(), *files.values()], _ALLOWED)
        | dict.fromkeys(architecture.unknown.values(), _UNKNOWN)
    )


def _search(runs: list[tuple[int, Block]]) -> Block:
    """`runs`: the first number of each run, ascending, and its block."""
    if len(runs) == 1:
        return runs[0][1]
    middle = len(runs) // 2
    below, above = _search(runs[:middle]), _search(runs[middle:])
    return [(JUMP_AT_LEAST, len(below), 0, runs[middle][0]), *below, *above]


def program(architecture: Architecture, *, has_files: bool) -> Block:
    """The filter. `has_files`: the call has a folder, which Landlock opens to it; else nothing is ever written."""
    blocks = _blocks(architecture, has_files)
    runs: list[tuple[int, Block]] = [(0, _REFUSED)]
    for number in range(max(blocks) + 2):
        block = blocks.get(number, _REFUSED)
        if block != runs[-1][1]:
            runs.append((number, block))
    if runs[1][0] == 0:
        del runs[0]
    if architecture.foreign_bit is not None:
        runs.append((architecture.foreign_bit, _KILLED))
    search = [(LOAD, 0, 0, _NUMBER), *_search(runs)]
    return [(LOAD, 0, 0, _AUDIT), (JUMP_EQUAL, 1, 0, architecture.audit), *_KILLED, *search]


def encode(block: Block) -> bytes:
    """As `struct sock_filter[]`."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in block)
