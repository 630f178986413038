"""Becomes a user, in a world where that user can reach Python and this checkout, then runs a command:
`python -m tests.failure.sandbox.entry UID COMMAND...`. Needs root.

Python may lie below a folder that only root can enter, such as root's home. In a mount namespace of its own, the
folder becomes an empty one that all can enter, with what is needed put back at the same path.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from pathlib import Path

from tests.failure.sandbox.host import CHECKOUT

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    _check(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), target)


def _closed_parent(path: Path) -> Path | None:
    """The topmost folder above `path` that only some users can enter."""
    return next((parent for parent in reversed(path.parents) if not parent.stat().st_mode & stat.S_IXOTH), None)


def _needed() -> list[Path]:
    """The folders that Python and the tests lie in, none inside another."""
    program = Path(sys.executable).resolve().parent
    folders = sorted({program, CHECKOUT, *(Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix))})
    return [folder for folder in folders if not any(other in folder.parents for other in folders)]


def open_the_way() -> None:
    """Makes what is needed reachable for every user. Raises OSError where the kernel does not let root do it."""
    closed: dict[Path, list[Path]] = {}
    for folder in _needed():
        if (parent := _closed_parent(folder)) is not None:
            closed.setdefault(parent, []).append(folder)
    if not closed:
        return
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    for parent, folders in closed.items():
        fds = [os.open(folder, os.O_PATH) for folder in folders]
        _mount("tmpfs", str(parent), "tmpfs", 0, "mode=0755")
        for folder, fd in zip(folders, fds, strict=True):
            folder.mkdir(parents=True)
            _mount(f"/proc/self/fd/{fd}", str(folder), None, _MS_BIND | _MS_REC)
            os.close(fd)


def main() -> None:
    uid, command = int(sys.argv[1]), sys.argv[2:]
    open_the_way()
    if uid != 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
