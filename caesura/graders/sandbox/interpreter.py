"""The command that starts a zygote: a bare interpreter, in namespaces of its own where bubblewrap gives them."""

from __future__ import annotations

import functools
import marshal
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from types import CodeType

#: Modules of `jail`, each after those that it imports.
_MODULES = ("wire", "syscalls", "bpf", "kernel", "call", "zygote")

#: Nothing of this package is readable in the sandbox: the compiled modules come over the standard input.
_BOOTSTRAP = """
import marshal, sys, types
modules, order = marshal.load(sys.stdin.buffer)
for name, code in modules:
    sys.modules[name] = types.ModuleType(name)
    exec(code, sys.modules[name].__dict__)
main, Order = sys.modules[name].main, sys.modules[name].Order
del modules, name, code
main(Order(*order))
"""

#: When memory runs out, the kernel is to take graders before training. Where it may not be said, it is not.
_FIRST_TO_GO = ("/bin/sh", "-c", '{ echo 1000 > /proc/self/oom_score_adj; } 2> /dev/null; exec "$@"', "sh")

#: The whole environment of a grader, HOME and TMPDIR apart. One thread: a call may use one core.
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
}

#: Shared libraries, what the loader knows of them, and time zones.
_SYSTEM_PATHS = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
_ZONES = "/usr/share/zoneinfo"
_DEVICES = ("/dev/null", "/dev/urandom")


def search_path() -> list[str]:
    """Where third-party packages are installed; never the folder of a checkout."""
    return [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages") and Path(path).is_dir()]


@functools.cache
def readable_paths() -> list[str]:
    """What Python and its packages need, as far as it exists here, as named and as resolved, outermost first."""
    paths = {executable(), *_SYSTEM_PATHS, _ZONES, *_DEVICES, *search_path()}
    paths |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    paths |= {str(Path(sys.base_prefix) / "lib")}
    paths |= {os.path.realpath(path) for path in paths}
    return sorted(path for path in paths if Path(path).exists())


@functools.cache
def private_paths() -> list[str]:
    """Where this machine keeps its interpreter, unless where everybody's is; longest first."""
    paths = {sys.base_prefix, sys.prefix, os.path.realpath(sys.base_prefix), *search_path()}
    return sorted((path for path in paths if not Path(path).is_relative_to("/usr")), key=len, reverse=True)


def executable() -> str:
    """The interpreter behind a virtual environment's: that one would look for its configuration."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def plain_command() -> list[str]:
    """Runs the bootstrap without namespaces."""
    return [*_FIRST_TO_GO, *_python_command()]


def bubblewrap_command(folders: list[str], file_bytes: int) -> list[str]:
    """Runs the bootstrap as the first process of its namespaces, so that all calls die with it.

    FileNotFoundError if bubblewrap is not installed.
    """
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise FileNotFoundError("there is no bwrap on the PATH: install bubblewrap")
    is_root = os.geteuid() == 0
    return [
        *_FIRST_TO_GO,
        bubblewrap,
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        # Root needs no namespace of users, and must be able to become another one.
        *(("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID") if is_root else ()),
        *(() if is_root else ("--unshare-user", "--cap-drop", "ALL")),
        *("--as-pid-1", "--die-with-parent", "--new-session", "--hostname", "sandbox", "--clearenv"),
        *(word for name, value in ENVIRONMENT.items() for word in ("--setenv", name, value)),
        *_binds(),
        *_scratch(folders, file_bytes),
        *("--chdir", "/", "--remount-ro", "/", "--"),
        *_python_command(),
    ]


def _python_command() -> list[str]:
    return [executable(), "-s", "-S", "-P", "-B", "-c", _BOOTSTRAP]


def _binds() -> list[str]:
    """Each at its own path: an interpreter that was moved finds other libraries than its own."""
    words: list[str] = []
    bound: list[Path] = []
    made: set[Path] = {Path("/")}
    for path in map(Path, readable_paths()):
        if any(path.is_relative_to(other) for other in bound):
            continue
        for parent in reversed(path.parents):
            # Without a mode of our own they would come out as closed as they are outside, to the user of the zygote.
            if parent not in made:
                words += ["--perms", "0755", "--dir", str(parent)]
                made.add(parent)
        if path.is_symlink():
            words += ["--symlink", os.readlink(path), str(path)]
            continue
        words += ["--dev-bind" if str(path) in _DEVICES else "--ro-bind", str(path), str(path)]
        bound.append(path)
    return words


def _scratch(folders: list[str], file_bytes: int) -> list[str]:
    """A file system for each call at a time: its size bounds one call, whatever the others do."""
    words = ["--perms", "0755", "--dir", "/tmp"]
    for folder in folders:
        words += ["--size", str(file_bytes), "--perms", "0777", "--tmpfs", folder]
    return words


@functools.cache
def jail_modules() -> list[tuple[str, CodeType]]:
    """(full name, code) of the modules that run inside, in the order in which they are to be run."""
    folder = Path(__file__).parent / "jail"
    package = f"{__package__}.jail"
    return [
        (f"{package}.{name}", compile((folder / f"{name}.py").read_bytes(), f"{name}.py", "exec", dont_inherit=True))
        for name in _MODULES
    ]


def program(order: tuple[object, ...]) -> bytes:
    """What the bootstrap reads. `order`: the fields of an `Order`."""
    return marshal.dumps((jail_modules(), tuple(order)))  # pyright: ignore[reportArgumentType]
