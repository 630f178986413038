"""A zygote as the host sees it: a process that is started, serves calls in its slots, and is killed when in doubt."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import logging
import os
import select
import signal
import socket
import struct
from asyncio import Future
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from subprocess import DEVNULL, Popen

from caesura.graders.sandbox.imports import STANDARD
from caesura.graders.sandbox.interpreter import (
    ENVIRONMENT,
    bubblewrap_command,
    plain_command,
    program,
    readable_paths,
    search_path,
)
from caesura.graders.sandbox.jail.wire import KILL, MAX_REPLY_BYTES, PACKET, READY, RUN, SPOILT, Order
from caesura.graders.sandbox.limits import Level, Limits, SandboxFault
from caesura.graders.sandbox.reply import Ending

logger = logging.getLogger(__name__)

#: Importing the heaviest packages from a cold disk on a busy machine takes many seconds.
START_TIMEOUT_S = 60.0
#: The zygote keeps a call's time; when it has not by so much later, it is out of order itself.
GRACE_S = 5.0
#: A killed process that is not gone by then hangs in the kernel: it is left to itself.
REAP_TIMEOUT_S = 10.0
#: Where the server is root, each zygote gets a user of its own, out of numbers that systemd's list of users and
#: groups has as unused: one sandbox cannot signal, trace or count against another.
_USERS = range(60706, 61184)
_users = itertools.count(os.getpid())
#: Where a zygote's user is the server's own, all that runs for the user counts: the limit is only against a flood.
_MAX_PROCESSES_OF_USER = 4096
#: `struct ucred`: the sender's process, by the number that it has here.
_CREDENTIALS = struct.Struct("=iII")


@dataclass(slots=True)
class Call:
    """A call under way. `ended` is set once its process is gone; it is never cancelled and never an exception."""

    slot: int
    #: Where its reply can be read.
    descriptor: int
    ended: Future[Ending | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    #: The zygote did not keep its time.
    is_overdue: bool = False


class Zygote:
    """Made by `start_zygote`. Whatever it does that is not foreseen, it is killed, and its calls end with None."""

    def __init__(self, process: Popen[bytes], control: socket.socket, limits: Limits, num_slots: int) -> None:
        #: No call may begin any more.
        self.is_spent = False
        #: Set when its process is gone.
        self.gone: Future[None] = asyncio.get_running_loop().create_future()
        #: Set when it can take calls, with the number of its process here, or with None when it is gone before that.
        self.ready: Future[int | None] = asyncio.get_running_loop().create_future()
        self._process = process
        self._control = control
        self._limits = limits
        self._free_slots = set(range(num_slots))
        self._calls: dict[int, Call] = {}
        #: A name of the process that no other one can get.
        self._descriptor: int | None = None
        self._reaper: asyncio.Task[None] | None = None
        asyncio.get_running_loop().add_reader(control.fileno(), self._hear)

    def begin(self, request: bytes) -> Call | None:
        """Starts a call; None if the zygote is spent, or turns out to be gone. OSError if descriptors run out."""
        if self.is_spent:
            return None
        descriptor = _sealed(request)
        try:
            reply, reply_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            call = Call(self._free_slots.pop(), reply)
            self._calls[call.slot] = call
            self._send(RUN, call.slot, [descriptor, reply_end])
            os.close(reply_end)
        finally:
            os.close(descriptor)
        if self.is_spent:
            return None
        overdue = asyncio.get_running_loop().call_later(self._limits.wall_clock_s + GRACE_S, self._overdue, call)
        call.ended.add_done_callback(lambda _: overdue.cancel())
        return call

    def abandon(self, call: Call) -> None:
        """Has the call's process killed; `ended` follows."""
        if not call.ended.done():
            self._send(KILL, call.slot, [])

    def retire(self) -> None:
        """Takes no call any more, and is killed when the last one under way has ended."""
        self.is_spent = True
        if not self._calls:
            self.kill()

    def kill(self) -> None:
        """Ends the process and with it all its calls. May be called twice."""
        self.is_spent = True
        if self._reaper is not None:
            return
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        self._control.close()
        # The group: a bubblewrap that is killed while it starts leaves a half-made child, which waits for it for ever.
        # Its number is not free before `_reap` has asked after the process.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._descriptor is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        if not self.ready.done():
            self.ready.set_result(None)
        self._reaper = asyncio.create_task(self._reap())

    async def _reap(self) -> None:
        """Lets the calls go when nothing of them can run any more."""
        try:
            async with asyncio.timeout(REAP_TIMEOUT_S):
                while self._process.poll() is None or not self._has_ended():
                    await asyncio.sleep(0.002)
        except TimeoutError:
            logger.error("the process %s of a grader sandbox does not end", self._process.pid)
        finally:
            if self._descriptor is not None:
                os.close(self._descriptor)
            for call in list(self._calls.values()):
                self._finish(call, None)
            self.gone.set_result(None)

    def _has_ended(self) -> bool:
        """bubblewrap may be gone before the zygote that it started; with that, all in its namespace are gone."""
        if self._descriptor is None:
            return True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def _overdue(self, call: Call) -> None:
        call.is_overdue = True
        self.kill()

    def _send(self, kind: int, slot: int, descriptors: list[int]) -> None:
        try:
            socket.send_fds(self._control, [PACKET.pack(kind, slot, 0, 0)], descriptors)
        except OSError:  # it is gone, or does not listen
            self.kill()

    def _hear(self) -> None:
        """Reads all that is there."""
        while self._reaper is None:
            try:
                packet, ancillary, _, _ = self._control.recvmsg(PACKET.size, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return
            except OSError:
                packet, ancillary = b"", []
            if not packet:
                self.kill()
                return
            try:
                self._take(packet, ancillary)
            except (struct.error, LookupError, OSError):
                logger.exception("a grader sandbox says something that is not foreseen, and is ended")
                self.kill()

    def _take(self, packet: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        kind, slot, status, flags = PACKET.unpack(packet)
        if kind == READY:
            pid = _CREDENTIALS.unpack(ancillary[0][2])[0]
            self._descriptor = os.pidfd_open(pid)
            self.ready.set_result(pid)
            return
        call = self._calls[slot]
        self._finish(call, Ending(status, flags, _read(call.descriptor)))
        if flags & SPOILT or self.is_spent:
            self.retire()

    def _finish(self, call: Call, ending: Ending | None) -> None:
        del self._calls[call.slot]
        self._free_slots.add(call.slot)
        os.close(call.descriptor)
        call.ended.set_result(ending)


async def start_zygote(level: Level, limits: Limits, num_slots: int, preload: Iterable[str]) -> Zygote:
    """SandboxFault if it does not start; the log (debug) says why."""
    messages, messages_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        zygote = _spawn(level, limits, num_slots, preload, messages_end)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                pid = await asyncio.shield(zygote.ready)
        except BaseException:
            zygote.kill()
            await zygote.gone
            raise
        if pid is None:
            await zygote.gone
            raise ChildProcessError(_read(messages).decode(errors="replace").strip())
        return zygote
    except (OSError, TimeoutError) as error:
        logger.debug("a grader sandbox at the level %s did not start: %s", level, error)
        raise SandboxFault("sandbox did not start") from error
    finally:
        os.close(messages)
        os.close(messages_end)


def _spawn(level: Level, limits: Limits, num_slots: int, preload: Iterable[str], messages: int) -> Zygote:
    """Until the zygote is ready, what it says goes to the descriptor `messages`."""
    if level is Level.NONE:
        raise ChildProcessError("this level runs nothing")
    folders = [f"/tmp/{slot}" for slot in range(num_slots)] if level is Level.STRONG else []
    command = bubblewrap_command(folders, limits.file_bytes) if folders else plain_command()
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.setblocking(False)
    control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    try:
        text = _sealed(program(_order(theirs.fileno(), limits, folders, num_slots, preload)))
        try:
            process = Popen(
                command,
                stdin=text,
                stdout=DEVNULL,
                stderr=messages,
                pass_fds=[theirs.fileno()],
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(text)
    except BaseException:
        control.close()
        raise
    finally:
        theirs.close()
    return Zygote(process, control, limits, num_slots)


def _order(control: int, limits: Limits, folders: list[str], num_slots: int, preload: Iterable[str]) -> Order:
    is_root = os.geteuid() == 0
    # Of root's own interpreter its new user may be unable to read any more than this. bubblewrap opens the way to it.
    return Order(
        control=control,
        user=_USERS[next(_users) % len(_USERS)] if is_root else None,
        search_path=search_path(),
        preload=sorted({*preload, *STANDARD} if is_root and not folders else preload),
        readable=readable_paths(),
        folders=folders,
        num_slots=num_slots,
        wall_clock_s=limits.wall_clock_s,
        memory_bytes=limits.memory_bytes,
        file_bytes=limits.file_bytes,
        num_files=limits.num_files,
        num_processes=num_slots * limits.num_threads + 1 if is_root or folders else _MAX_PROCESSES_OF_USER,
    )


def _sealed(text: bytes) -> int:
    """A file without a name that holds `text`, at its beginning, and that nobody can change."""
    descriptor = os.memfd_create("request", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(text)
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _read(descriptor: int) -> bytes:
    """What lies in a pipe; of much, a little more than a reply may have."""
    text = b""
    with suppress(BlockingIOError):
        while len(text) <= MAX_REPLY_BYTES and (piece := os.read(descriptor, MAX_REPLY_BYTES + 1)):
            text += piece
    return text
