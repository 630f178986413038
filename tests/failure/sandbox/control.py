"""The calls beside and after an attack: are they answered, rightly, and do they see what was there before?"""

from __future__ import annotations

import json
import re

#: Answers with the sum of `x` and `y`, or with -1 - i where part i of what it sees is not as `item["expected"]` says.
#: Where nothing is expected, it raises the checksums of all parts. It has no import line: see `source_after`.
_SOURCE = """
_NAMES = "builtins codecs decimal fcntl gc json locale math os random resource signal sys threading time warnings zlib"
globals().update((name, __import__(name)) for name in _NAMES.split())

def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask

def environment():
    here = os.getcwd()
    return sorted((name, value.replace(here, "HERE")) for name, value in os.environ.items())

def descriptors():
    fds = []
    for fd in range(1024):
        try:
            fds.append((fd, fcntl.fcntl(fd, fcntl.F_GETFL)))
        except OSError:
            pass
    return fds

def limits():
    # The limit of memory is counted from what the interpreter has mapped, which may differ by a page.
    return [resource.getrlimit(limit) for limit in range(16) if limit != resource.RLIMIT_AS]

PARTS = {
    "environment": environment,
    "folder": lambda: sorted(os.listdir(".")),
    "descriptors": descriptors,
    "limits": limits,
    # A new process may have a new user; root it never is.
    "identity": lambda: (0 in (*os.getresuid(), *os.getresgid()), len(os.getgroups())),
    "signal mask": lambda: sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "signal handlers": lambda: [str(signal.getsignal(number)) for number in range(1, 65)],
    "timers": lambda: [signal.getitimer(which)[0] > 0 for which in range(3)],
    "threads": threading.active_count,
    "tracing": lambda: (sys.gettrace(), sys.getprofile()),
    "interpreter": lambda: (sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits(), sys.flags),
    "collector": lambda: (gc.isenabled(), gc.get_threshold(), gc.callbacks),
    "builtins": lambda: [(name, type(value).__name__) for name, value in sorted(vars(builtins).items())],
    "modules": lambda: sorted(sys.modules),
    "import": lambda: (sys.path, len(sys.meta_path), len(sys.path_hooks)),
    "mathematics": lambda: (sorted(vars(math)), math.pi, sum([1, 2]), round(2.5)),
    "json": lambda: json.dumps(json.loads('{"a": [1.5, null]}')),
    "random": lambda: type(random.random).__name__,
    "locale": lambda: locale.setlocale(locale.LC_ALL),
    "decimal": lambda: (decimal.getcontext().prec, decimal.DefaultContext.prec),
    "warnings": lambda: len(warnings.filters),
    "codecs": lambda: codecs.lookup("utf-8").name,
    "umask": umask,
    "priority": lambda: os.getpriority(os.PRIO_PROCESS, 0),
    "time zone": lambda: time.tzname,
    "output": lambda: (type(sys.stdout).__name__, sys.displayhook.__name__),
}

def checksum(look):
    try:
        text = repr(look())
    except OSError as error:
        text = type(error).__name__
    return zlib.crc32(text.encode())

def grade(sample, item):
    checksums = {name: checksum(look) for name, look in PARTS.items()}
    if "expected" not in item:
        raise LookupError(json.dumps(checksums))
    for index, (name, expected) in enumerate(item["expected"].items()):
        if checksums[name] != expected:
            return -1 - index
    return sample["x"] + item["y"]
"""
#: Runs while an attack does, on the same sandbox, and answers with the sum of `x` and `y`. It starts no thread: the
#: kernel counts those of a whole sandbox together, so that an attack may leave none to the calls beside it.
_NEIGHBOUR = """
globals().update((name, __import__(name)) for name in "os time".split())

def grade(sample, item):
    time.sleep(0.01)
    if os.access(".", os.W_OK):
        with open("neighbour", "x") as file:
            file.write(str(sample["x"]))
        with open("neighbour") as file:
            assert int(file.read()) == sample["x"]
        assert os.listdir(".") == ["neighbour"]
    return sample["x"] + item["y"]
"""
_IMPORT_LINE = re.compile(r"^[ \t]*(?:import|from)[ \t].*", re.MULTILINE)


def import_lines(source: str) -> str:
    """By these the sandbox chooses the process that runs `source`."""
    return "\n".join(sorted({line.strip() for line in _IMPORT_LINE.findall(source)})).replace('"', "'")


def source_after(imports: str) -> str:
    """The control, to be run by the process with these imports: the lines are there, though they are but a text."""
    return f'r"""\n{imports}\n"""\n{_SOURCE}'


def source_beside(imports: str) -> str:
    return f'r"""\n{imports}\n"""\n{_NEIGHBOUR}'


def checksums(details: str) -> dict[str, int]:
    """Of the parts, out of the details of the fault that the control ends in where it expects nothing."""
    text = details.rpartition("LookupError: ")[2]
    return json.loads(text)
