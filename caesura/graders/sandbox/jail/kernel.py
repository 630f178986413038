"""What the standard library does not wrap: no_new_privs, capabilities, Landlock, seccomp. All raise OSError.

Constants: include/uapi/linux/{prctl,capability,landlock,seccomp}.h; Landlock's versions: its page in the kernel's
documentation, userspace-api/landlock.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from typing import NamedTuple

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION = 0x20080522
#: The same numbers on every architecture.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_CREATE_VERSION, _LANDLOCK_RULE_PATH_BENEATH = 1, 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_MAKE_CHAR, _MAKE_SOCKET, _MAKE_FIFO, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 10, 1 << 11
#: Version → how many of the file rights, lowest first, it knows. Later versions add no file right.
_NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
#: Bind and connect of TCP (since version 4); signals and abstract sockets out of the domain (since version 6).
_TCP, _SCOPES = 0b11, 0b11

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _prctl(option: int, second: int, third: int, what: str) -> None:
    arguments = [ctypes.c_ulong(value) for value in (second, third, 0, 0)]
    _checked(_libc.prctl(option, *arguments), what)


def _syscall(what: str, number: int, *arguments: object) -> int:
    return _checked(_libc.syscall(ctypes.c_long(number), *arguments), what)


def die_with_parent(signal: int) -> None:
    """Has `signal` sent to this process when its parent's thread ends. A change of user undoes it."""
    _prctl(_PR_SET_PDEATHSIG, signal, 0, "PR_SET_PDEATHSIG")


def forbid_inspection() -> None:
    """No other process of the user may read this one's memory, nor may a core be dumped."""
    _prctl(_PR_SET_DUMPABLE, 0, 0, "PR_SET_DUMPABLE")


def forbid_privileges() -> None:
    """No program run from here on can gain rights; the kernel wants this before a filter or a domain."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, "PR_SET_NO_NEW_PRIVS")


def drop_capabilities() -> None:
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, "PR_CAP_AMBIENT")
    header, none = struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24)
    _checked(_libc.capset(ctypes.create_string_buffer(header), ctypes.create_string_buffer(none)), "capset")


def become(user: int) -> None:
    """Makes this process `user`'s, with the group of the same number and no other, for good.

    Raises OSError if that is not allowed, RuntimeError if there is a way back.
    """
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise RuntimeError("the change of user can be undone")


def make_filter(instructions: bytes) -> ctypes.Structure:
    """A seccomp filter out of `struct sock_filter[]`."""
    return _Program(len(instructions) // 8, instructions)


def install_filter(program: ctypes.Structure) -> None:
    """For this thread and all that come of it; filters add up."""
    _checked(_libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(program)), "seccomp")


class Domain(NamedTuple):
    """A Landlock ruleset: an open descriptor."""

    descriptor: int
    #: All rights that it governs.
    rights: int

    def allow_reading(self, path: str) -> None:
        self._allow(path, _READ_FILE | _READ_DIR)

    def allow_writing(self, path: str) -> None:
        """Everything beneath a folder but programs, sockets, fifos and devices; a file may be read and written."""
        self._allow(path, self.rights & ~(_EXECUTE | _MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCKET | _MAKE_FIFO))

    def enter(self) -> None:
        """For this thread and all that come of it; domains add up."""
        _syscall("landlock_restrict_self", _LANDLOCK_RESTRICT, ctypes.c_int(self.descriptor), ctypes.c_uint(0))

    def _allow(self, path: str, rights: int) -> None:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(opened).st_mode):
                rights &= self.rights & (_READ_FILE | _WRITE_FILE | _TRUNCATE)
            rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, opened))
            _syscall(f"landlock_add_rule {path}", _LANDLOCK_ADD, self.descriptor, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
        finally:
            os.close(opened)


def make_domain() -> Domain:
    """One that allows nothing yet, by all that this kernel's version of Landlock governs.

    OSError if the kernel has no Landlock (before 5.13, or switched off).
    """
    version = _syscall("Landlock", _LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_VERSION)
    rights = (1 << _NUM_FILE_RIGHTS[min(version, max(_NUM_FILE_RIGHTS))]) - 1
    attributes = struct.pack("=QQQ", rights, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    buffer = ctypes.create_string_buffer(attributes)
    return Domain(_syscall("landlock_create_ruleset", _LANDLOCK_CREATE, buffer, ctypes.c_size_t(size), 0), rights)
