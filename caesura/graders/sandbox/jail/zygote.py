"""The process that calls are forked from: it imports, confines itself, then forks, waits and keeps the time.

It has one thread, and no byte of a request ever enters it. A fork costs the more the more is imported, so these
modules import little.
"""

from __future__ import annotations

import gc
import importlib
import math
import mmap
import os
import resource
import select
import signal
import socket
import sys
import time
from contextlib import suppress

from caesura.graders.sandbox.jail.bpf import encode, program
from caesura.graders.sandbox.jail.call import Cell, serve
from caesura.graders.sandbox.jail.kernel import (
    Domain,
    become,
    die_with_parent,
    drop_capabilities,
    forbid_inspection,
    forbid_privileges,
    make_domain,
    make_filter,
)
from caesura.graders.sandbox.jail.syscalls import ARCHITECTURES
from caesura.graders.sandbox.jail.wire import (
    END,
    KILL,
    NOT_STARTED,
    PACKET,
    READY,
    RUN,
    SPOILT,
    TIMED_OUT,
    TOO_MANY_FILES,
    Order,
)

#: How often the time and the number of files are looked at while calls run.
_LOOK_INTERVAL_S = 0.05
#: A folder with more in it is not emptied: a new zygote costs less.
_MAX_FILES_TO_CLEAN = 1000


class _Running:
    def __init__(self, slot: int, pid: int, descriptor: int, deadline_s: float) -> None:
        self.slot = slot
        self.pid = pid
        #: Readable once the process has ended.
        self.descriptor = descriptor
        self.deadline_s = deadline_s
        self.flags = 0


def main(order: Order) -> None:
    """Ends when the host closes the socket. Raises OSError, before any grader runs, if it cannot be confined."""
    _preload(order)
    cells = _confine(order)
    # What the collector does not touch stays shared with the calls.
    gc.collect()
    gc.freeze()
    gc.disable()
    os.dup2(1, 0)
    os.dup2(1, 2)
    with socket.socket(fileno=order.control) as control:
        control.send(PACKET.pack(READY, 0, 0, 0))
        _Zygote(order, control, cells).run()


def _preload(order: Order) -> None:
    sys.path += order.search_path
    for name in order.preload:
        with suppress(Exception):  # a grader that imports it is told so itself
            importlib.import_module(name)


def _confine(order: Order) -> list[Cell]:
    """Paths first, while they may be read; then the user, which takes that and all capabilities away."""
    architecture = ARCHITECTURES[os.uname().machine]
    compiled = make_filter(encode(program(architecture, has_files=bool(order.folders))))
    domains = [_domain(order, slot) for slot in range(order.num_slots)]
    if order.user is not None:
        become(order.user)
    drop_capabilities()
    forbid_privileges()
    forbid_inspection()
    die_with_parent(signal.SIGKILL)
    limits = _limits(order)
    folders = order.folders or [None] * order.num_slots
    zygote = os.getpid()
    return [Cell(zygote, domain, compiled, limits, folder) for domain, folder in zip(domains, folders, strict=True)]


def _domain(order: Order, slot: int) -> Domain:
    domain = make_domain()
    for path in order.readable:
        domain.allow_reading(path)
    domain.allow_writing("/dev/null")
    if order.folders:
        domain.allow_writing(order.folders[slot])
    return domain


def _limits(order: Order) -> list[tuple[int, int]]:
    wanted = {
        resource.RLIMIT_AS: _mapped_bytes() + order.memory_bytes,
        resource.RLIMIT_CPU: math.ceil(order.wall_clock_s) + 1,
        resource.RLIMIT_FSIZE: order.file_bytes if order.folders else 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: order.num_processes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    hard = {kind: resource.getrlimit(kind)[1] for kind in wanted}
    return [
        (kind, limit if hard[kind] == resource.RLIM_INFINITY else min(limit, hard[kind]))
        for kind, limit in wanted.items()
    ]


def _mapped_bytes() -> int:
    """This process's address space to a MiB, found without /proc: by which limit one more page is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    low, high = 0, 2**47 if hard == resource.RLIM_INFINITY else hard
    while high - low > 2**20:
        middle = (low + high) // 2
        resource.setrlimit(resource.RLIMIT_AS, (middle, hard))
        try:
            mmap.mmap(-1, mmap.PAGESIZE).close()
            high = middle
        except OSError:
            low = middle
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return high


class _Zygote:
    """The loop. A slot has at most one call at a time, which the host sees to."""

    def __init__(self, order: Order, control: socket.socket, cells: list[Cell]) -> None:
        self._order = order
        self._control = control
        self._cells = cells
        self._running: dict[int, _Running] = {}
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def run(self) -> None:
        while True:
            ready = self._poll.poll(self._timeout_ms())
            # Ends before orders: the host takes a slot again only after it has heard of its end.
            for descriptor, _ in ready:
                if descriptor in self._running:
                    self._end(self._running.pop(descriptor))
            if any(descriptor == self._control.fileno() for descriptor, _ in ready) and not self._obey():
                break
            self._watch()
        for call in self._running.values():
            os.kill(call.pid, signal.SIGKILL)

    def _timeout_ms(self) -> float | None:
        if not self._running:
            return None
        left_s = min(call.deadline_s for call in self._running.values()) - time.monotonic()
        return 1000 * max(0.0, min(left_s, _LOOK_INTERVAL_S))

    def _obey(self) -> bool:
        """Does what the next packet says; False once the host is gone."""
        packet, descriptors, _, _ = socket.recv_fds(self._control, PACKET.size, 2)
        if not packet:
            return False
        kind, slot, _, _ = PACKET.unpack(packet)
        if kind == RUN:
            self._start(slot, *descriptors)
        elif kind == KILL:
            for call in self._running.values():
                if call.slot == slot:
                    os.kill(call.pid, signal.SIGKILL)
        return True

    def _start(self, slot: int, request: int, reply: int) -> None:
        deadline_s = time.monotonic() + self._order.wall_clock_s
        try:
            pid = os.fork()
            if pid == 0:
                gc.enable()
                serve(request, reply, self._cells[slot])
        except OSError:
            self._control.send(PACKET.pack(END, slot, 0, NOT_STARTED | SPOILT))
            return
        finally:
            os.close(request)
            os.close(reply)
        descriptor = os.pidfd_open(pid)
        self._running[descriptor] = _Running(slot, pid, descriptor, deadline_s)
        self._poll.register(descriptor, select.POLLIN)

    def _watch(self) -> None:
        now_s = time.monotonic()
        for call in self._running.values():
            if now_s >= call.deadline_s:
                call.flags |= TIMED_OUT
                os.kill(call.pid, signal.SIGKILL)
                call.deadline_s = math.inf
            elif self._order.folders and _num_files(self._order.folders[call.slot]) > self._order.num_files:
                call.flags |= TOO_MANY_FILES
                os.kill(call.pid, signal.SIGKILL)

    def _end(self, call: _Running) -> None:
        self._poll.unregister(call.descriptor)
        os.close(call.descriptor)
        _, status, usage = os.wait4(call.pid, 0)
        flags = call.flags
        if (
            os.WIFSIGNALED(status)
            and os.WTERMSIG(status) == signal.SIGKILL
            and usage.ru_utime + usage.ru_stime > self._order.wall_clock_s
        ):
            flags |= TIMED_OUT
        if self._order.folders and not _is_cleaned(self._order.folders[call.slot]):
            flags |= SPOILT
        self._control.send(PACKET.pack(END, call.slot, status, flags))


def _num_files(folder: str) -> int:
    """In a file system of its own, without itself."""
    state = os.statvfs(folder)
    return state.f_files - state.f_ffree - 1


def _is_cleaned(folder: str) -> bool:
    """Whether it is empty again. What cannot be removed at once (very much, or modes without rights) stays."""
    if not 0 < _num_files(folder) <= _MAX_FILES_TO_CLEAN:
        return _num_files(folder) == 0
    try:
        for path, folders, files in os.walk(folder, topdown=False):
            for name in files:
                os.unlink(f"{path}/{name}")
            for name in folders:
                _remove_folder(f"{path}/{name}")
    except (OSError, RecursionError):
        return False
    return _num_files(folder) == 0


def _remove_folder(path: str) -> None:
    """Or the link to one: `os.walk` counts these as folders, and does not follow them."""
    if os.path.islink(path):
        os.unlink(path)
    else:
        os.rmdir(path)
