"""Attacks that read, list, write or change what is not the grader's own."""

from __future__ import annotations

from caesura.graders.sandbox import Level
from tests.failure.sandbox.attack import SYSCALL, Attack, harmless, refused

#: Where there is no namespace, whether a file exists and how large it is can be seen; what it holds cannot.
_ONLY_STRONG = frozenset({Level.STRONG})

_READS = [
    refused("reads the list of users", "open('/etc/passwd').read()"),
    refused("reads the list of passwords", "open('/etc/shadow').read()", is_real=False),
    refused("reads the machine's name from /etc", "open('/etc/hostname').read()"),
    refused("reads where names are resolved", "open('/etc/resolv.conf').read()"),
    refused("reads a file of the server", "open(host['file']).read()"),
    refused("reads a file of the server through its own folder", "open('../../../../..' + host['file']).read()"),
    refused(
        "reads a file of the server by a raw call", "call('openat', -100, host['file'].encode(), 0, 0)", prelude=SYSCALL
    ),
    refused(
        "reads a file of the server by openat2",
        "call('openat2', -100, host['file'].encode(), struct.pack('QQQ', 0, 0, 0), 24)",
        prelude=SYSCALL,
    ),
    refused(
        "reads a file of the server through a link of its own",
        """
        os.symlink(host['file'], 'link')
        open('link').read()
        """,
    ),
    refused(
        "reads a file of the server through a second name",
        """
        os.link(host['file'], 'name')
        open('name').read()
        """,
        is_real=False,
    ),
    refused("reads a file of the server through /proc", "open('/proc/self/root' + host['file']).read()"),
    refused(
        "maps a file of the server",
        """
        import mmap
        mmap.mmap(os.open(host['file'], os.O_RDONLY), 0, prot=mmap.PROT_READ)
        """,
    ),
    refused(
        "copies a file of the server to itself",
        """
        import shutil
        shutil.copy(host['file'], 'copy')
        """,
    ),
    refused("lists a folder of the server", "os.listdir(host['folder'])"),
    refused(
        "lists a folder of the server by a descriptor of it",
        "os.listdir(os.open('.', os.O_RDONLY, dir_fd=os.open(host['folder'], os.O_PATH)))",
    ),
    refused(
        "walks out of its folder by descriptors",
        """
            fd = os.open('.', os.O_PATH)
            for _ in range(20):
                fd = os.open('..', os.O_PATH, dir_fd=fd)
            open(os.open(host['file'][1:], os.O_RDONLY, dir_fd=fd)).read()
            """,
    ),
    refused("reads an extended attribute of a file of the server", "os.listxattr(host['file'])"),
    refused("reads the source that is served", "open(host['checkout'] + '/caesura/settings.py').read()"),
    refused("lists the source that is served", "os.listdir(host['checkout'])"),
    refused("lists the homes", "os.listdir('/home')"),
    refused("lists root's home", "os.listdir('/root')", is_real=False),
    refused("lists the root", "os.listdir('/')"),
    refused("lists the temporary files", "os.listdir('/tmp')"),
    refused("lists the shared memory", "os.listdir('/dev/shm')"),
    refused("lists the machine's devices", "os.listdir('/dev')"),
    refused("lists the machine's log", "os.listdir('/var/log')"),
    refused("lists what runs", "os.listdir('/run')"),
    refused("lists the kernel's settings", "os.listdir('/sys/kernel')"),
    refused("reads the kernel's version from /proc", "open('/proc/version').read()"),
    refused("reads the kernel's symbols", "open('/proc/kallsyms').read(100)"),
    refused("reads the mounts", "open('/proc/self/mountinfo').read()"),
    refused("sees that a file of the server exists", "os.stat(host['file'])", levels=_ONLY_STRONG),
    refused("sees where a link of the host leads", "os.readlink('/proc/self')", levels=_ONLY_STRONG),
    refused("sees how large a file system of the host is", "os.statvfs(host['folder'])", levels=_ONLY_STRONG),
    refused(
        "sees whether it may read a file of the server",
        """
        if not os.access(host['file'], os.R_OK):
            raise PermissionError
        """,
        levels=_ONLY_STRONG,
    ),
    refused(
        "sees the machine's name",
        """
        if os.uname().nodename != host['name']:
            raise PermissionError
        """,
        levels=_ONLY_STRONG,
    ),
    refused("sees where a descriptor of the server leads", "os.readlink(f\"/proc/{host['server']}/fd/0\")"),
    refused("sees what a process of the host runs", "os.readlink(f\"/proc/{host['victim']}/exe\")"),
    refused("opens the folder that a process of the host is in", "os.listdir(f\"/proc/{host['victim']}/cwd\")"),
    refused("opens the root of a process of the host", "os.listdir(f\"/proc/{host['victim']}/root\")"),
    refused(
        "reads the folder of the call beside it",
        """
            own = os.path.realpath('.')
            for name in range(64):
                folder = f'/tmp/{name}'
                if folder != own:
                    try:
                        os.listdir(folder)
                    except OSError:
                        continue
                    return
            raise PermissionError
            """,
        is_real=False,
    ),
    refused(
        "writes into the folder of the call beside it",
        """
            own = os.path.realpath('.')
            for name in range(64):
                folder = f'/tmp/{name}'
                if folder != own:
                    try:
                        os.mkdir(folder + '/intruder')
                    except OSError:
                        continue
                    return
            raise PermissionError
            """,
        is_real=False,
    ),
    refused("sees that a process of the host exists", "os.stat(f\"/proc/{host['victim']}\")", levels=_ONLY_STRONG),
    harmless(
        "looks for the host's secret in all that it can read",
        """
        def readable():
            yield repr(sorted(os.environ.items()))
            for pid in ("self", os.getppid(), 1, 2, 3):
                for name in ("environ", "cmdline", "maps", "status"):
                    yield f"/proc/{pid}/{name}"
            for top in ("/etc", "/tmp", "/dev/shm", "/run", "/var/tmp", "/home", "/root", "."):
                for folder, _, names in os.walk(top):
                    yield from (f"{folder}/{name}" for name in names)

        def grade(sample, item):
            for text in readable():
                if text.startswith("/"):
                    try:
                        with open(text, errors="replace") as file:
                            text = file.read(1 << 20)
                    except OSError:
                        continue
                if "SECRET" + "_OF_THE_HOST" in text:
                    return 1.0
            return 0.0
        """,
        outcome=r"0\.0",
        is_real=True,
    ),
]

#: Only some of them are on any machine, and what is there is root's: but for the last, none counts as real.
_DEVICES = (
    *("/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/tty", "/dev/tty0", "/dev/console", "/dev/fuse"),
    *("/dev/kvm", "/dev/net/tun", "/dev/userfaultfd", "/dev/loop-control", "/proc/sysrq-trigger"),
    *("/proc/sys/kernel/core_pattern", "/sys/fs/cgroup/cgroup.procs", "/dev/ptmx"),
)
_OPENS = [refused(f"opens {path}", f"os.open({path!r}, os.O_RDWR)", is_real=path == "/dev/ptmx") for path in _DEVICES]

#: What is written is inside the host's folder, or named so that `host.py` finds it.
_WRITES = [
    refused("writes a file of the server", "open(host['file'], 'w').write('x')"),
    refused("appends to a file of the server", "open(host['file'], 'a').write('x')"),
    refused("creates a file beside the server's", "open(host['folder'] + '/new', 'x')"),
    refused("creates a file without a name beside the server's", "os.open(host['folder'], os.O_TMPFILE | os.O_RDWR)"),
    refused("creates a folder beside the server's files", "os.mkdir(host['folder'] + '/new')"),
    refused("creates a pipe beside the server's files", "os.mkfifo(host['folder'] + '/new')"),
    refused("creates a socket beside the server's files", "os.mknod(host['folder'] + '/new', 0o140600)"),
    refused("creates a link beside the server's files", "os.symlink('/etc', host['folder'] + '/new')"),
    refused("gives a file of the server a second name", "os.link(host['file'], host['folder'] + '/new')"),
    refused("renames a file of the server", "os.rename(host['file'], host['file'] + '2')"),
    refused("moves a file of the server to itself", "os.rename(host['file'], 'mine')", is_real=False),
    refused(
        "exchanges two files of the server",
        "call('renameat2', -100, host['file'].encode(), -100, host['folder'].encode() + b'/empty', 2)",
        prelude=SYSCALL,
    ),
    refused("removes a file of the server", "os.unlink(host['file'])"),
    refused("removes a folder of the server", "os.rmdir(host['folder'] + '/empty')"),
    refused("cuts a file of the server short", "os.truncate(host['file'], 0)"),
    refused("changes the mode of a file of the server", "os.chmod(host['file'], 0o777)"),
    refused(
        "changes the mode of a file of the server by a descriptor of its path",
        "call('fchmodat', os.open(host['folder'], os.O_PATH), b'canary', 0o777)",
        prelude=SYSCALL,
    ),
    refused("changes the times of a file of the server", "os.utime(host['file'], (1, 1))"),
    refused("changes the owner of a file of the server", "os.chown(host['file'], os.getuid(), os.getgid())"),
    refused("gives a file of the server away", "os.chown(host['file'], 12345, 12345)", is_real=False),
    refused("puts an attribute on a file of the server", "os.setxattr(host['file'], 'user.caesura', b'x')"),
    refused(
        "copies into a file of the server",
        "os.sendfile(os.open(host['file'], os.O_WRONLY), os.open(sys.executable, os.O_RDONLY), 0, 16)",
    ),
    refused(
        "locks a file of the server",
        """
        import fcntl
        fcntl.flock(os.open(host['file'], os.O_RDONLY), fcntl.LOCK_EX)
        """,
    ),
    refused(
        "mounts over a folder of the server",
        "call('mount', b'none', host['folder'].encode(), b'tmpfs', 0, 0)",
        prelude=SYSCALL,
        is_real=False,
    ),
]

_ELSEWHERE = [
    refused(f"writes to {place}", f"open({place!r} + '/caesura-attack', 'x')", is_real=False)
    for place in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/dev", "/", "/etc", "/usr/lib", "/home", "/root", "..")
]
_ELSEWHERE += [
    refused(
        "writes to the standard library",
        "open(os.path.dirname(os.__file__) + '/caesura-attack.py', 'x')",
        is_real=False,
    ),
    refused("writes to Python's program", "open(sys.executable, 'r+b')", is_real=False),
    refused("writes beside Python's program", "open(sys.prefix + '/caesura-attack', 'x')", is_real=False),
    refused(
        "writes to every folder that Python imports from",
        """
            for folder in sys.path:
                try:
                    open(folder + '/caesura-attack.py', 'x')
                except OSError:
                    continue
                return
            raise PermissionError
            """,
        is_real=False,
    ),
    refused(
        "replaces a compiled module of the standard library",
        """
        import json
        open(json.__cached__, 'r+b')
        """,
        is_real=False,
    ),
    refused("makes a device", "os.mknod('device', 0o020600, os.makedev(1, 1))", is_real=False),
    refused("makes a device of a disk", "os.mknod('disk', 0o060600, os.makedev(254, 0))", is_real=False),
    refused(
        "makes a program that runs as its owner",
        """
        open('program', 'x').close()
        os.chmod('program', 0o6777)
        if not os.stat('program').st_mode & 0o6000 or os.getuid() != 0:
            raise PermissionError
        """,
        is_real=False,
    ),
    refused("changes the mode of what is not its own", "os.chmod('/tmp', 0o700)", is_real=False),
    harmless(
        "leaves names of every kind behind in its folder",
        """
        def grade(sample, item):
            try:
                os.mkdir("locked")
                open("locked/file", "x").close()
                os.chmod("locked", 0)
                os.mkfifo("pipe")
                os.symlink("/", "root")
                os.symlink("loop", "loop")
                open("x" * 255, "x").close()
                open(b"\\xff\\xfe\\n", "x").close()
                os.chmod(".", 0)
            except OSError:
                pass
            return 0.25
        """,
        outcome=r"0\.25",
    ),
    harmless(
        "replaces its own folder by a link to the server's",
        """
        def grade(sample, item):
            try:
                here = os.getcwd()
                os.rename(here, here + "-moved")
                os.symlink(sample["host"]["folder"], here)
            except OSError:
                pass
            return 0.25
        """,
        outcome=r"0\.25",
    ),
    harmless(
        "leaves a link to the server's folder where its own is cleared away",
        """
        def grade(sample, item):
            try:
                os.symlink(sample["host"]["folder"], "link")
                os.mkdir("a")
                os.symlink(sample["host"]["folder"], "a/link")
            except OSError:
                pass
            return 0.25
        """,
        outcome=r"0\.25",
    ),
]

ATTACKS: list[Attack] = [*_READS, *_OPENS, *_WRITES, *_ELSEWHERE]
