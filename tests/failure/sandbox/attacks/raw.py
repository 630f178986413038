"""System calls that no grader has a use for, made past Python: the sandbox refuses the call itself.

Their arguments are chosen so that nothing comes of the call on a machine that does not refuse it: a null pointer, a
descriptor that is not open, a length that is out of range. If the kernel has another complaint than "not permitted",
the sandbox has let the call through, and the attack counts as one that succeeded.
"""

from __future__ import annotations

import platform

from tests.failure.sandbox.attack import REFUSED, SYSCALL, Attack
from tests.failure.sandbox.syscalls import NUMBERS

_NEVER = """
def grade(sample, item):
    try:
        {call}
    except OSError as error:
        return float(error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS))
    return 1.0
"""

#: name → the system call's name and arguments. An ordinary user gets further with these where nothing holds him.
_ORDINARY = {
    "creates a user namespace": ("unshare", "0x10000000"),
    "joins another namespace": ("setns", "-1, 0"),
    "asks to be traced": ("ptrace", "0, 0, 0, 0"),
    "reads memory through process_vm_readv": ("process_vm_readv", "os.getpid(), 0, 0, 0, 0, 0"),
    "writes memory through process_vm_writev": ("process_vm_writev", "os.getpid(), 0, 0, 0, 0, 0"),
    "compares its descriptors with its own": ("kcmp", "os.getpid(), os.getpid(), 2, 0, 0"),
    "opens a handle of its parent": ("pidfd_open", "os.getppid(), 0"),
    "takes a descriptor out of another process": ("pidfd_getfd", "-1, 0, 0"),
    "signals through a process handle": ("pidfd_send_signal", "-1, 0, 0, 0"),
    "queues a signal for its parent": ("rt_sigqueueinfo", "os.getppid(), 15, 0"),
    "queues a signal for a thread of its parent": ("rt_tgsigqueueinfo", "os.getppid(), os.getppid(), 15, 0"),
    "advises on another process's memory": ("process_madvise", "-1, 0, 0, 0, 0"),
    "releases another process's memory": ("process_mrelease", "-1, 0"),
    "moves memory pages between nodes": ("move_pages", "0, 0, 0, 0, 0, 0"),
    "sets up io_uring": ("io_uring_setup", "1, ctypes.create_string_buffer(120)"),
    "sets up asynchronous I/O": ("io_setup", "1, ctypes.create_string_buffer(8)"),
    "adds a key": ("add_key", "b'user', b'caesura', b'x', 1, -2"),
    "asks for a key": ("request_key", "b'user', b'caesura', 0, 0"),
    "reads its session's keyring": ("keyctl", "0, -3, 0"),
    "opens performance counters": ("perf_event_open", "0, 0, -1, -1, 0"),
    "handles page faults in user space": ("userfaultfd", "1"),
    "hides memory from the kernel": ("memfd_secret", "0"),
    "takes READ_IMPLIES_EXEC as its personality": ("personality", "0x0400000"),
    "watches files": ("inotify_init1", "0"),
    "turns a path into a handle": ("name_to_handle_at", "-100, 0, 0, 0, 0"),
    "clones a mount": ("open_tree", "-1, 0, 0"),
    "changes a mount's attributes": ("mount_setattr", "-1, 0, 0, 0, 0"),
    "opens a System V shared memory": ("shmget", "0x0CA35012, 4096, 0"),
    "opens a System V message queue": ("msgget", "0x0CA35012, 0"),
    "opens a System V semaphore": ("semget", "0x0CA35012, 1, 0"),
    "opens a POSIX message queue": ("mq_open", "b'caesura', 0, 0, 0"),
    "sets an extended attribute": ("setxattr", "0, 0, 0, 0, 0"),
    "truncates by path": ("truncate", "0, 0"),
    "executes past Python": ("execve", "0, 0, 0"),
    "executes a descriptor": ("execveat", "-1, 0, 0, 0, 0x1000"),
    "clones through clone3": ("clone3", "0, 0"),
    "adds a seccomp filter": ("seccomp", "1, 0, 0"),
    "makes itself dumpable": ("prctl", "4, 1, 0, 0, 0"),
    "lets any process trace it": ("prctl", "0x59616D61, -1, 0, 0, 0"),
    "adopts orphans": ("prctl", "36, 1, 0, 0, 0"),
    "outlives its parent": ("prctl", "1, 0, 0, 0, 0"),
    "adds a filter through prctl": ("prctl", "22, 2, 0, 0, 0"),
    "starts a session": ("setsid", ""),
    "leaves its process group": ("setpgid", "0, 0"),
    "flushes every file system": ("sync", ""),
}
#: A privilege that only root has, or that has been taken from everyone.
_PRIVILEGED = {
    "mounts": ("mount", "0, 0, 0, 0, 0"),
    "unmounts": ("umount2", "0, 0"),
    "opens a file system to mount": ("fsopen", "0, 0"),
    "mounts what it opened": ("fsmount", "-1, 0, 0"),
    "moves a mount": ("move_mount", "-1, 0, -1, 0, 0"),
    "pivots the root": ("pivot_root", "0, 0"),
    "changes the root": ("chroot", "0"),
    "opens a file by its handle": ("open_by_handle_at", "-1, 0, 0"),
    "watches a whole file system": ("fanotify_init", "0, 0"),
    "loads a BPF program": ("bpf", "5, 0, 0"),
    "loads a kernel module": ("init_module", "0, 0, 0"),
    "loads a kernel module from a descriptor": ("finit_module", "-1, 0, 0"),
    "unloads a kernel module": ("delete_module", "0, 0"),
    "loads another kernel": ("kexec_load", "0, 0, 0, 0x100000"),
    "loads another kernel from a descriptor": ("kexec_file_load", "-1, -1, 0, 0, 0"),
    "reboots": ("reboot", "0, 0, 0, 0"),
    "swaps on": ("swapon", "0, 0"),
    "swaps off": ("swapoff", "0"),
    "renames the machine": ("sethostname", "b'x', -1"),
    "renames the machine's domain": ("setdomainname", "b'x', -1"),
    "sets the time of day": ("settimeofday", "0, 0"),
    "sets the clock": ("clock_settime", "0, 0"),
    "sets a quota": ("quotactl", "0, 0, 0, 0"),
    "sets a quota by descriptor": ("quotactl_fd", "-1, 0, 0, 0"),
    "keeps accounts of processes": ("acct", "0"),
    "reads the kernel's log": ("syslog", "10, 0, 0"),
    "hangs up the terminal": ("vhangup", ""),
    "sets its capabilities": ("capset", "0, 0"),
    "raises an ambient capability": ("prctl", "47, 2, 21, 0, 0"),
    "keeps capabilities over a change of user": ("prctl", "8, 1, 0, 0, 0"),
    "sets its secure bits": ("prctl", "28, 0, 0, 0, 0"),
    "moves its memory's borders": ("prctl", "35, 1, 0, 0, 0"),
    "migrates its parent's memory": ("migrate_pages", "os.getppid(), 0, 0, 0"),
    "becomes root": ("setuid", "0"),
    "becomes root by all three ids": ("setresuid", "0, 0, 0"),
    "becomes root by both ids": ("setreuid", "0, 0"),
    "joins root's group": ("setgid", "0"),
    "joins root's group by all three ids": ("setresgid", "0, 0, 0"),
    "joins root's group by both ids": ("setregid", "0, 0"),
    "sets its groups": ("setgroups", "0, 0"),
    "runs in real time": ("sched_setscheduler", "0, 1, ctypes.byref(ctypes.c_int(1))"),
    "sets its scheduling": ("sched_setattr", "0, 0, 0"),
    "raises its priority": ("setpriority", "0, 0, -5"),
    "raises its priority for I/O": ("ioprio_set", "1, 0, 1 << 13"),
    "traces its parent": ("ptrace", "16, os.getppid(), 0, 0"),
    "seizes its parent": ("ptrace", "0x4206, os.getppid(), 0, 0"),
    "reaches for the processor's ports": ("ioperm", "0x80, 1, 1"),
    "raises its I/O privilege level": ("iopl", "3"),
    "reads its local descriptor table": ("modify_ldt", "0, 0, 0"),
    "loads a library the old way": ("uselib", "0"),
}


def _attack(name: str, call: str, args: str, is_real: bool) -> Attack:
    source = SYSCALL + _NEVER.format(call=f"call({', '.join(filter(None, (repr(call), args)))})")
    return Attack(name, source, REFUSED, is_real=is_real)


_CALLS = [
    _attack(name, call, args, is_real)
    for table, is_real in ((_ORDINARY, True), (_PRIVILEGED, False))
    for name, (call, args) in table.items()
    if call in NUMBERS
]

#: Sets `run`, which runs machine code, or ends in an OSError where memory cannot be made executable.
_MACHINE_CODE = """
import mmap

def run(code):
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    return ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()

def grade(sample, item):
    try:
        result = run(bytes.fromhex("{code}"))
    except OSError:
        return 0.0
    if {is_child} and result == 0:
        os._exit(0)
    return 0.0 if -4096 < result < 0 else 1.0
"""


def _machine_code(name: str, code: str, *, is_child: bool = False, is_real: bool = True) -> Attack:
    source = SYSCALL + _MACHINE_CODE.format(code=code, is_child=is_child)
    return Attack(name, source, REFUSED, is_real=is_real)


#: Of x86-64: mov eax, NUMBER; then int 0x80 (a 32-bit call) or syscall; ret.
_X86 = [
    _machine_code("makes a 32-bit call (getpid)", "b814000000cd80c3", is_real=False),
    _machine_code("forks by a 32-bit call", "b802000000cd80c3", is_child=True, is_real=False),
    _machine_code("forks by a syscall instruction of its own", "b8390000000f05c3", is_child=True),
    Attack(
        "makes a call of the x32 ABI",
        SYSCALL + "NUMBERS['x32'] = 0x40000000 + 39\n" + _NEVER.format(call="call('x32')"),
        REFUSED,
    ),
    Attack(
        "opens a file by a call of the x32 ABI",
        SYSCALL + "NUMBERS['x32'] = 0x40000000 + 2\n" + _NEVER.format(call="call('x32', b'/etc/passwd', 0, 0)"),
        REFUSED,
    ),
]

_OTHERS = [
    Attack(
        "makes a call that is out of any table",
        SYSCALL + "NUMBERS['none'] = 100_000\n" + _NEVER.format(call="call('none')"),
        REFUSED,
    ),
    Attack(
        "makes a call whose number is right only in its lower half",
        SYSCALL + "NUMBERS['wide'] = NUMBERS['socket'] + (1 << 32)\n" + _NEVER.format(call="call('wide', 2, 1, 0)"),
        REFUSED,
        is_real=True,
    ),
]

ATTACKS = [*_CALLS, *(_X86 if platform.machine() == "x86_64" else []), *_OTHERS]
