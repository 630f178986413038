"""Attacks that start processes, or reach for those that are there."""

from __future__ import annotations

import platform

from tests.failure.sandbox.attack import SYSCALL, Attack, harmless, refused, stopped

_FORKS = [
    refused(
        "forks",
        """
        if os.fork() == 0:
            os._exit(0)
        os.wait()
        """,
    ),
    refused(
        "forks by a raw clone",
        """
        if call('clone', 17, 0, 0, 0, 0) == 0:
            os._exit(0)
        """,
        prelude=SYSCALL,
    ),
    refused(
        "clones into new namespaces",
        """
        if call('clone', 0x10000000 | 0x20000000 | 17, 0, 0, 0, 0) == 0:
            os._exit(0)
        """,
        prelude=SYSCALL,
    ),
    # Without CLONE_THREAD it is a process, though it shares everything else; no stack is given, so it is not real.
    refused(
        "clones a process that shares its memory",
        """
        if call('clone', 0x100 | 0x200 | 0x400 | 0x4000 | 17, 0, 0, 0, 0) == 0:
            os._exit(0)
        """,
        prelude=SYSCALL,
        is_real=False,
    ),
    refused(
        "forks a terminal",
        """
        import pty
        pid, fd = pty.fork()
        if pid == 0:
            os._exit(0)
        """,
    ),
    refused(
        "starts a program",
        """
        import subprocess
        subprocess.run(['/bin/true'], check=True)
        """,
    ),
    refused("starts a program by posix_spawn", "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)"),
    refused(
        "starts a shell",
        """
        if os.system('exit 7') != 7 << 8:
            raise PermissionError
        """,
    ),
    refused(
        "starts a shell past Python",
        """
        if call_system(b'exit 7') != 7 << 8:
            raise PermissionError
        """,
        prelude="""
        import ctypes, os
        call_system = ctypes.CDLL(None).system
        """,
    ),
    refused(
        "starts a process of multiprocessing",
        """
        import multiprocessing
        child = multiprocessing.Process(target=print)
        child.start()
        child.join()
        """,
    ),
    refused("becomes another program", "os.execv('/bin/true', ['true'])", is_real=False),
    refused("becomes another Python", "os.execv(sys.executable, [sys.executable, '-c', 'pass'])", is_real=False),
    refused(
        "executes what it wrote into memory",
        """
        fd = os.memfd_create('program')
        os.write(fd, b'#!/bin/true')
        os.execve(fd, ['program'], {})
        """,
        is_real=False,
    ),
    refused(
        "executes what it wrote into a file",
        """
        with open('program', 'w') as file:
            file.write('#!/bin/true')
        os.chmod('program', 0o700)
        os.execv('./program', ['program'])
        """,
        is_real=False,
    ),
    stopped(
        "forks without end",
        """
        def grade(sample, item):
            num_forks = 0
            for _ in range(1000):
                try:
                    if os.fork() == 0:
                        time.sleep(60)
                    num_forks += 1
                except OSError:
                    pass
            return num_forks
        """,
        outcome=r"0\.0",
    ),
]
if platform.machine() == "x86_64":
    _FORKS += [
        refused(
            "forks by the raw call",
            """
            if call('fork') == 0:
                os._exit(0)
            """,
            prelude=SYSCALL,
        ),
        refused(
            "forks by vfork",
            """
            if call('vfork') == 0:
                os._exit(0)
            """,
            prelude=SYSCALL,
            is_real=False,
        ),
    ]

#: Signal 0 asks only whether one may: the kernel checks as for any other.
_SIGNALS = [
    refused("signals its parent", "os.kill(os.getppid(), 0)"),
    refused("kills its parent", "os.kill(os.getppid(), signal.SIGKILL)", is_real=False),
    refused("stops its parent", "os.kill(os.getppid(), signal.SIGSTOP)", is_real=False),
    refused("signals the first process", "os.kill(1, 0)", is_real=False),
    refused("signals its group", "os.kill(0, 0)"),
    refused("signals its parent's group", "os.killpg(os.getpgid(os.getppid()), 0)"),
    refused("signals every process", "os.kill(-1, 0)"),
    refused("kills a process of the host", "os.kill(host['victim'], signal.SIGKILL)", is_real=False),
    refused(
        "kills a thread of the host",
        "call('tgkill', host['victim'], host['victim'], 9)",
        prelude=SYSCALL,
        is_real=False,
    ),
    refused("kills a thread of the host by tkill", "call('tkill', host['victim'], 9)", prelude=SYSCALL, is_real=False),
    refused(
        "kills a process of the host through a handle",
        "signal.pidfd_send_signal(os.pidfd_open(host['victim']), signal.SIGKILL)",
        is_real=False,
    ),
    refused(
        "signals whatever process there is",
        """
        for pid in set(range(1, 1 << 16)) - {os.getpid()}:
            try:
                os.kill(pid, 0)
            except OSError:
                continue
            return
        raise PermissionError
        """,
    ),
    harmless(
        "has the kernel signal a process of the host",
        """
        import fcntl

        def grade(sample, item):
            read, write = os.pipe()
            fcntl.fcntl(read, fcntl.F_SETOWN, sample["host"]["victim"])
            fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC)
            os.write(write, b"x")
            return 1.0
        """,
    ),
    harmless(
        "has the kernel signal its parent",
        """
        import fcntl

        def grade(sample, item):
            read, write = os.pipe()
            fcntl.fcntl(read, fcntl.F_SETOWN, os.getppid())
            fcntl.fcntl(read, 10, signal.SIGKILL)
            fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC)
            os.write(write, b"x")
            return 1.0
        """,
    ),
    harmless(
        "has the kernel signal the owner of every descriptor that it was given",
        """
        import fcntl

        def grade(sample, item):
            for fd in range(1024):
                try:
                    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getppid())
                    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
                except OSError:
                    pass
            return 0.25
        """,
    ),
]

_OTHERS = [
    refused(
        "asks for a lease on a file of Python's",
        """
        import fcntl
        fcntl.fcntl(os.open(os.__file__, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)
        """,
        is_real=False,
    ),
    refused(
        "locks a file of Python's",
        """
        import fcntl
        fcntl.flock(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
        """,
    ),
    refused(
        "is told of changes in a folder of Python's",
        """
        import fcntl
        fcntl.fcntl(os.open(os.path.dirname(os.__file__), os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_ACCESS)
        """,
    ),
    refused("reads the environment of a process of the host", "open(f\"/proc/{host['victim']}/environ\").read()"),
    refused("reads the environment of the server", "open(f\"/proc/{host['server']}/environ\").read()"),
    refused("reads the environment of its parent", "open(f'/proc/{os.getppid()}/environ').read()"),
    refused("reads its own environment from /proc", "open('/proc/self/environ').read()"),
    refused("reads the command line of the server", "open(f\"/proc/{host['server']}/cmdline\").read()"),
    refused("opens the memory of a process of the host", "open(f\"/proc/{host['victim']}/mem\", 'rb')", is_real=False),
    refused("opens the memory of its parent", "open(f'/proc/{os.getppid()}/mem', 'r+b')", is_real=False),
    refused("opens its own memory", "open('/proc/self/mem', 'r+b')"),
    refused("reads its own map of memory", "open('/proc/self/maps').read()"),
    refused("lists the processes of the host", "os.listdir('/proc')"),
    refused("lists the descriptors of the server", "os.listdir(f\"/proc/{host['server']}/fd\")"),
    refused(
        "sets the limits of its parent",
        """
        import resource
        resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0))
        """,
        is_real=False,
    ),
    refused(
        "reads the limits of a process of the host",
        """
        import resource
        resource.prlimit(host['victim'], resource.RLIMIT_NOFILE)
        """,
    ),
    refused(
        "pins a process of the host to a processor",
        "os.sched_setaffinity(host['victim'], os.sched_getaffinity(host['victim']))",
    ),
    refused("sets the priority of a process of the host", "os.setpriority(os.PRIO_PROCESS, host['victim'], 19)"),
    refused("sets the priority of its parent", "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)"),
    refused(
        "raises its limit of memory",
        """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        """,
        refusals="(OSError, ValueError)",
        is_real=False,
    ),
    refused(
        "raises its limit of processor time",
        """
        import resource
        resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))
        """,
        refusals="(OSError, ValueError)",
        is_real=False,
    ),
    refused(
        "raises its limit of descriptors",
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))
        """,
        refusals="(OSError, ValueError)",
        is_real=False,
    ),
    refused(
        "raises its limit of processes",
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NPROC, (-1, -1))
        """,
        refusals="(OSError, ValueError)",
        is_real=False,
    ),
    refused(
        "raises its limit of a file's size",
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        """,
        refusals="(OSError, ValueError)",
        is_real=False,
    ),
    refused(
        "is root for files",
        """
        call('setfsuid', 0)
        if call('setfsuid', -1) != 0:
            raise PermissionError
        """,
        prelude=SYSCALL,
        is_real=False,
    ),
    refused(
        "is root",
        """
        if 0 not in (*os.getresuid(), *os.getresgid()):
            raise PermissionError
        """,
        is_real=False,
    ),
    refused(
        "has groups of the host",
        """
        if not set(os.getgroups()) - {os.getgid(), 65534}:
            raise PermissionError
        """,
        is_real=False,
    ),
    refused("waits for a child of its parent", "os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)", is_real=False),
]

ATTACKS: list[Attack] = [*_FORKS, *_SIGNALS, *_OTHERS]
