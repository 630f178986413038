"""The filter of both architectures, run by a machine of our own: the kernel here knows only one of them."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path

import pytest

from caesura.graders.sandbox.jail.bpf import ALLOW, ERRNO, KILL, encode, program
from caesura.graders.sandbox.jail.syscalls import ARCHITECTURES, Architecture
from tests.graders.sandbox.bpf_machine import verdict

REFUSED, UNKNOWN = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
I386 = 0x40000003
#: From the headers of Linux: name, x86-64, aarch64.
DANGEROUS = """
    socket 41 198           connect 42 203          bind 49 200             sendto 44 206           sendmsg 46 211
    socketpair 53 199       accept4 288 242         fork 57 -               vfork 58 -              execve 59 221
    execveat 322 281        kill 62 129             tkill 200 130           tgkill 234 131          ptrace 101 117
    rt_sigqueueinfo 129 138 pidfd_open 434 434      pidfd_getfd 438 438     pidfd_send_signal 424 424
    process_vm_readv 310 270                        process_vm_writev 311 271
    unshare 272 97          setns 308 268           mount 165 40            umount2 166 39          pivot_root 155 41
    chroot 161 51           bpf 321 280             keyctl 250 219          add_key 248 217         request_key 249 218
    io_uring_setup 425 425  io_uring_enter 426 426  userfaultfd 323 282     perf_event_open 298 241
    memfd_create 319 279    seccomp 317 277         personality 135 92      modify_ldt 154 -        arch_prctl 158 -
    chmod 90 -              fchmod 91 52            fchmodat 268 53         chown 92 -              fchown 93 55
    fchownat 260 54         utimensat 280 88        setxattr 188 5          mknodat 259 33          link 86 -
    linkat 265 37           truncate 76 45          setuid 105 146          setgid 106 144          setgroups 116 159
    capset 126 91           setrlimit 160 164       sched_setaffinity 203 122                       setpriority 141 140
    init_module 175 105     kexec_load 246 104      reboot 169 142          swapon 167 224          syslog 103 116
    name_to_handle_at 303 264                       open_by_handle_at 304 265                       setsid 112 157
    shmget 29 194           msgget 68 186           mq_open 240 180         fanotify_init 300 262
    splice 275 76           sendfile 40 71          flock 73 32             mlock 149 228           ioprio_set 251 30
    landlock_restrict_self 446 446                  quotactl 179 60         acct 163 89             wait4 61 260
"""
NEW_PROCESS, NEW_NAMESPACE, GLIBC_THREAD, MUSL_THREAD = 0x11, 0x3D0F00 | 0x10000000, 0x3D0F00, 0x7D0F00

machines = pytest.mark.parametrize("machine", ARCHITECTURES)


def ask(machine: str, number: int, *arguments: int, has_files: bool = True) -> int:
    architecture = ARCHITECTURES[machine]
    return verdict(program(architecture, has_files=has_files), architecture.audit, number, *arguments)


def dangerous(machine: str) -> dict[str, int]:
    words = DANGEROUS.split()
    column = {"x86_64": 1, "aarch64": 2}[machine]
    rows = zip(words[::3], words[1::3], words[2::3], strict=True)
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def allowed(architecture: Architecture, *, has_files: bool) -> set[int]:
    return {*architecture.always.values(), *(architecture.files.values() if has_files else ())}


@machines
@pytest.mark.parametrize("has_files", [True, False])
def test_every_number_of_the_tables_gets_its_verdict_and_all_others_are_refused(machine: str, has_files: bool) -> None:
    architecture = ARCHITECTURES[machine]
    block = program(architecture, has_files=has_files)
    passes = allowed(architecture, has_files=has_files)
    for number in {*range(1000), 0x3FFFFFFF} - ({*architecture.checked.values()} - passes):
        expected = ALLOW if number in passes else UNKNOWN if number in architecture.unknown.values() else REFUSED
        assert verdict(block, architecture.audit, number) == expected, number


@machines
@pytest.mark.parametrize("has_files", [True, False])
def test_dangerous_calls_are_refused_whatever_their_arguments(machine: str, has_files: bool) -> None:
    for name, number in dangerous(machine).items():
        for arguments in [(0,) * 6, (1,) * 6, (2**64 - 1,) * 6]:
            assert ask(machine, number, *arguments, has_files=has_files) == REFUSED, name


@machines
def test_calls_of_another_architecture_kill(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    block = program(architecture, has_files=True)
    others = {other.audit for other in ARCHITECTURES.values()} - {architecture.audit} | {I386}
    for audit in others:
        assert all(verdict(block, audit, number) == KILL for number in range(500))


def test_x32_calls_kill() -> None:
    for number in [0x40000000, 0x40000000 + 59, 0x40000000 + 520, 0xFFFFFFFF]:
        assert ask("x86_64", number) == KILL


@machines
@pytest.mark.parametrize(
    ("name", "arguments", "passes"),
    [
        ("clone", (GLIBC_THREAD,), True),
        ("clone", (MUSL_THREAD,), True),
        ("clone", (NEW_PROCESS,), False),
        ("clone", (NEW_NAMESPACE,), False),
        ("clone", (0,), False),
        ("prctl", (15,), True),  # PR_SET_NAME
        ("prctl", (4, 1), False),  # PR_SET_DUMPABLE
        ("prctl", (22, 2), False),  # PR_SET_SECCOMP
        ("prctl", (0x59616D61,), False),  # PR_SET_PTRACER
        ("ioctl", (0, 0x5401), True),  # TCGETS
        ("ioctl", (0, 0x5412), False),  # TIOCSTI
        ("ioctl", (0, 0x541C), False),  # TIOCLINUX
        ("ioctl", (0, 0x1_0000_5412), False),  # the kernel drops the upper half
        ("fcntl", (0, 1030), True),  # F_DUPFD_CLOEXEC
        ("fcntl", (0, 6), False),  # F_SETLK
        ("fcntl", (0, 8), False),  # F_SETOWN
        ("fcntl", (0, 1024), False),  # F_SETLEASE
        ("fcntl", (0, 1031), False),  # F_SETPIPE_SZ
        ("prlimit64", (0, 7, 0, 0x7FFF_0000_0000), True),
        ("prlimit64", (0, 7, 0x7FFF_0000_0000, 0), False),
        ("prlimit64", (0, 7, 0x1_0000_0000, 0), False),
        ("prlimit64", (1, 7, 0, 0), False),
        ("sched_getaffinity", (0,), True),
        ("sched_getaffinity", (1,), False),
    ],
)
def test_arguments_decide(machine: str, name: str, arguments: tuple[int, ...], passes: bool) -> None:
    number = ARCHITECTURES[machine].checked[name]

    assert ask(machine, number, *arguments) == (ALLOW if passes else REFUSED)


@machines
@pytest.mark.parametrize(
    "flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_CREAT, os.O_TMPFILE | os.O_RDWR, 3]
)
def test_without_a_folder_nothing_is_opened_for_writing(machine: str, flags: int) -> None:
    number = ARCHITECTURES[machine].checked["openat"]

    assert ask(machine, number, 0, 0, flags, has_files=False) == REFUSED
    assert ask(machine, number, 0, 0, os.O_RDONLY | os.O_CLOEXEC, has_files=False) == ALLOW
    assert ask(machine, number, 0, 0, flags, has_files=True) == ALLOW


@machines
def test_the_program_is_encoded_as_the_kernel_reads_it(machine: str) -> None:
    block = program(ARCHITECTURES[machine], has_files=True)

    assert list(struct.iter_unpack("=HBBI", encode(block))) == block


def header_numbers(path: str) -> dict[str, int]:
    text = Path(path).read_text()
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)[ \t]+(\d+)", text)}
    return {"newfstatat": numbers.get("fstatat", -1)} | numbers


@pytest.mark.parametrize(
    ("machine", "path"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_the_numbers_are_those_of_the_kernels_headers(machine: str, path: str) -> None:
    if not Path(path).exists():
        pytest.skip(f"{path} is not installed (package linux-libc-dev)")
    headers = header_numbers(path)
    architecture = ARCHITECTURES[machine]
    ours = architecture.always | architecture.files | architecture.checked | architecture.unknown

    assert ours == {name: headers[name] for name in ours}
    assert dangerous(machine) == {name: headers[name] for name in dangerous(machine)}
