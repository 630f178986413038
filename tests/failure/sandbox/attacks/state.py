"""Attacks on other calls: what is left behind for the next one, and what is sought of an earlier one."""

from __future__ import annotations

import textwrap

from tests.failure.sandbox.attack import SYSCALL, Attack, harmless


def _leaves(name: str, body: str, outcome: str = r"0\.25") -> Attack:
    body = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    return harmless(f"leaves {name} behind", f"def grade(sample, item):\n{body}\n    return 0.25\n", outcome)


_LEFT = [
    _leaves(
        "a name of its module",
        """
        globals()['left'] = 1
        sys.modules['__main__'].left = 1
        """,
    ),
    _leaves(
        "a name of a standard module",
        """
        import math
        math.pi = 3
        math.left = 1
        """,
    ),
    _leaves(
        "a changed builtin",
        """
        import builtins
        builtins.sum = builtins.round = lambda *_: 7
        builtins.left = 1
        """,
    ),
    _leaves("a poisoned module", "sys.modules['math'] = sys.modules['zlib'] = sys"),
    _leaves(
        "an import hook",
        """
        class Evil:
            def find_spec(self, *_):
                raise SystemExit(0)
        sys.meta_path.insert(0, Evil())
        sys.path_hooks.insert(0, Evil)
        sys.path_importer_cache.clear()
        """,
    ),
    _leaves(
        "a path to import from",
        """
        sys.path.insert(0, os.getcwd())
        sys.path[:] = []
        """,
    ),
    _leaves(
        "a tracer",
        """
        sys.settrace(lambda *_: None)
        threading.settrace(lambda *_: None)
        sys.setprofile(lambda *_: None)
        """,
    ),
    _leaves("an audit hook", "sys.addaudithook(lambda *_: None)"),
    _leaves(
        "an end of the process",
        """
        import atexit
        atexit.register(os._exit, 7)
        """,
    ),
    _leaves(
        "a changed environment",
        """
        os.environ['LEFT'] = '1'
        os.environ.clear()
        os.environ['PATH'] = '/evil'
        """,
    ),
    _leaves("another working directory", "os.chdir('/')"),
    _leaves(
        "a locale",
        """
        import locale
        locale.setlocale(locale.LC_ALL, 'C')
        """,
    ),
    _leaves("a blocked signal", "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))"),
    _leaves(
        "an ignored signal",
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        """,
    ),
    _leaves("an interval timer", "signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)"),
    _leaves(
        "a random state",
        """
        import random
        random.seed(7)
        random.random = lambda: 4
        """,
    ),
    _leaves(
        "a limit of recursion",
        """
        sys.setrecursionlimit(64)
        sys.set_int_max_str_digits(640)
        """,
    ),
    _leaves("a switch interval", "sys.setswitchinterval(60)"),
    _leaves(
        "a disabled collector",
        """
        import gc
        gc.disable()
        gc.freeze()
        gc.set_threshold(1)
        gc.callbacks.append(lambda *_: os._exit(0))
        """,
    ),
    _leaves(
        "a decimal context",
        """
        import decimal
        decimal.getcontext().prec = 1
        decimal.DefaultContext.prec = 1
        """,
    ),
    _leaves(
        "a warning filter",
        """
        import warnings
        warnings.simplefilter('error')
        """,
    ),
    _leaves(
        "a codec",
        """
        import codecs
        codecs.register(lambda name: os._exit(0))
        """,
    ),
    _leaves("a mode for new files", "os.umask(0o777)"),
    _leaves(
        "a lower limit",
        """
        import resource
        for limit in range(16):
            try:
                resource.setrlimit(limit, (0, 0))
            except (OSError, ValueError):
                pass
        """,
        r"0\.25|RuntimeFault: .+|SandboxFault: .+",
    ),
    _leaves(
        "a lower priority",
        """
        try:
            os.nice(19)
        except OSError:
            pass
        """,
    ),
    _leaves(
        "an open descriptor",
        """
        for _ in range(16):
            os.set_inheritable(os.dup(os.pipe()[0]), True)
        """,
    ),
    _leaves(
        "other modes on its descriptors",
        """
        import fcntl
        for fd in range(1024):
            try:
                fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK | os.O_ASYNC)
            except OSError:
                pass
        """,
    ),
    _leaves(
        "a file",
        """
        try:
            open('left', 'w').write('x')
            open(os.environ.get('TMPDIR', '.') + '/left', 'w')
            open(os.environ.get('HOME', '.') + '/left', 'w')
        except OSError:
            pass
        """,
    ),
    _leaves(
        "a time zone",
        """
        os.environ['TZ'] = 'Asia/Tokyo'
        time.tzset()
        """,
    ),
    _leaves(
        "a standard output",
        """
        sys.stdout = sys.__stdout__ = None
        sys.displayhook = None
        """,
    ),
    _leaves(
        "a thread",
        """
        def run():
            while True:
                time.sleep(0.01)
                open('left', 'w')
        threading.Thread(target=run, daemon=True).start()
        """,
    ),
    _leaves("a hook for forks", "os.register_at_fork(after_in_child=lambda: os._exit(0))"),
    _leaves(
        "a changed class",
        """
        import collections, json
        json.decoder.JSONDecoder.decode = lambda *_: {}
        collections.Counter.__init__ = None
        """,
    ),
    _leaves(
        "changed code of its caller",
        """
        frame = sys._getframe(1)
        functions = [value for value in frame.f_globals.values() if hasattr(value, '__code__')]
        for function in functions:
            if function.__code__.co_freevars == ():
                function.__defaults__ = (None,) * 3
        """,
    ),
    _leaves(
        "shared memory",
        """
        libc = ctypes.CDLL(None)
        libc.shmget(0x0CA35013, 4096, 0o1666)
        libc.semget(0x0CA35013, 1, 0o1666)
        libc.msgget(0x0CA35013, 0o1666)
        libc.shm_open.restype = ctypes.c_int
        libc.shm_open(b'/caesura-attack', 0o102, 0o666)
        libc.mq_open(b'/caesura-attack', 0o102, 0o666, None)
        """,
    ),
]

#: Sets `is_found`: whether the text whose characters' codes lie apart in `codes` is anywhere in this process's memory.
#: The text itself is never put together, so the search does not find itself. Whether a page can be read, a system call
#: with a senseless second argument tells: EFAULT comes before EINVAL.
_SEARCH = (
    SYSCALL
    + """
libc.memmem.restype = ctypes.c_void_p
PAGE = 4096

def is_readable(page):
    ctypes.set_errno(0)
    libc.syscall(ctypes.c_long(NUMBERS["rt_sigprocmask"]), ctypes.c_long(77), ctypes.c_void_p(page), None,
                 ctypes.c_long(8))
    return ctypes.get_errno() == errno.EINVAL

def anchors():
    libc.sbrk.restype = ctypes.c_void_p
    yield libc.sbrk(ctypes.c_long(0)) - PAGE
    yield id([])
    yield id(sys)
    yield ctypes.cast(libc.getpid, ctypes.c_void_p).value
    yield ctypes.c_void_p.in_dll(libc, "environ").value
    for size in (1 << 12, 1 << 17, 1 << 20, 1 << 24):
        yield ctypes.addressof(ctypes.create_string_buffer(size))

def walk(page, step, seen, most_gaps):
    gaps = 0
    while gaps < most_gaps and page not in seen and page > 0:
        if is_readable(page):
            gaps = 0
            seen.add(page)
        else:
            gaps += 1
        page += step

def is_found(codes):
    seen = set()
    for anchor in anchors():
        page = anchor // PAGE * PAGE
        walk(page, PAGE, seen, 2048)
        walk(page - PAGE, -PAGE, seen, 2048)
    start = (ctypes.c_char * 6)(*codes[:6])
    own = ctypes.addressof(start)
    for page in sorted(seen):
        # The search itself takes memory and gives it back.
        if not is_readable(page):
            continue
        at, end = page, page + PAGE
        while at is not None and end - at >= 6:
            at = libc.memmem(ctypes.c_void_p(at), ctypes.c_size_t(end - at), start, ctypes.c_size_t(6))
            if at is None:
                break
            rest = at + 6
            if at != own and rest + len(codes) < end and all(
                ctypes.c_ubyte.from_address(rest + index).value == code for index, code in enumerate(codes[6:])
            ):
                return True
            at += 1
    return False
"""
)

#: `sample["earlier"]["masked"]` is a text that an earlier call was given, each character's code plus 1000.
FIND_IN_MEMORY = (
    _SEARCH
    + """
def grade(sample, item):
    return float(is_found([code - 1000 for code in sample["earlier"]["masked"]]))
"""
)

FIND_BY_COLLECTOR = """
import gc, sys

def grade(sample, item):
    start, rest = sample["earlier"]["start"], sample["earlier"]["rest"]
    seen, waiting = set(), [*gc.get_objects(), *sys._current_frames().values()]
    while waiting and len(seen) < 200_000:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, (bytes, bytearray)):
            thing = bytes(thing).decode("latin-1")
        if isinstance(thing, str):
            at = thing.find(start)
            if at >= 0 and thing[at + len(start) :].startswith(rest):
                return 1.0
        else:
            waiting.extend(gc.get_referents(thing))
    return 0.0
"""

FIND_IN_FILES = """
import os

def grade(sample, item):
    start, rest = sample["earlier"]["start"], sample["earlier"]["rest"]
    for top in item.get("tops", ("/tmp", "/dev/shm", "/var/tmp", "/run", ".", "..", os.environ.get("HOME", "."))):
        for folder, _, names in os.walk(top):
            for name in names:
                try:
                    with open(os.path.join(folder, name), errors="replace") as file:
                        text = file.read(1 << 20)
                except OSError:
                    continue
                at = text.find(start)
                if at >= 0 and text[at + len(start) :].startswith(rest):
                    return 1.0
    return 0.0
"""

FIND_ON_DESCRIPTORS = """
import os

def grade(sample, item):
    start, rest = sample["earlier"]["start"], sample["earlier"]["rest"]
    for fd in range(1024):
        try:
            os.set_blocking(fd, False)
            text = os.read(fd, 1 << 20).decode("latin-1")
        except OSError:
            continue
        at = text.find(start)
        if at >= 0 and text[at + len(start) :].startswith(rest):
            return 1.0
    return 0.0
"""

_SOUGHT = [
    harmless("looks for an earlier call's sample in its memory", FIND_IN_MEMORY, r"0\.0"),
    harmless("looks for an earlier call's sample among all objects", FIND_BY_COLLECTOR, r"0\.0"),
    harmless("looks for an earlier call's sample in files", FIND_IN_FILES, r"0\.0"),
    harmless("looks for an earlier call's sample on its descriptors", FIND_ON_DESCRIPTORS, r"0\.0"),
    harmless(
        "looks for the host's secret in its environment's memory",
        SYSCALL + "\ndef grade(sample, item):\n    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ')\n"
        "    index = 0\n    while environ[index]:\n        if b'SECRET' in environ[index]:\n"
        "            return 1.0\n        index += 1\n    return 0.0\n",
        r"0\.0",
    ),
]

ATTACKS: list[Attack] = [*_LEFT, *_SOUGHT]
