"""What is taken away from a grader that takes too much."""

from __future__ import annotations

import asyncio
import time

import pytest

from caesura.graders.sandbox import Level, Limits
from tests.graders.sandbox.bench import Bench, grader, is_root


@pytest.fixture
def folder_bench(bench: Bench) -> Bench:
    if bench.level is not Level.STRONG:
        pytest.skip("calls have a folder at the level strong alone")
    return bench


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "import signal, time\nfor n in range(1, 65):\n"
        "    try: signal.signal(n, signal.SIG_IGN)\n    except Exception: pass\n"
        "while True:\n    try: time.sleep(60)\n    except BaseException: pass",
        "return sum(range(10**12))",
        "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
        "import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()\nwhile True: pass",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nsignal.sigwait([signal.SIGUSR1])",
    ],
)
def test_a_call_ends_at_its_time(hasty_bench: Bench, runner: asyncio.Runner, body: str) -> None:
    start_s = time.monotonic()

    assert runner.run(hasty_bench.fault(grader(body))) == "timeout"
    assert 0.5 <= time.monotonic() - start_s < 4


def test_threads_that_compute_at_once_use_up_the_time_of_the_processor(level: Level, runner: asyncio.Runner) -> None:
    """Hashing a large buffer runs without the interpreter's lock."""

    async def run() -> str:
        bench = Bench(level, Limits(wall_clock_s=2.0, memory_bytes=2**30), num_workers=1)
        body = (
            "import hashlib, threading\ndata = bytes(2**26)\n"
            "def spin():\n    while True: hashlib.sha256(data).digest()\n"
            "for _ in range(8): threading.Thread(target=spin).start()\nspin()"
        )
        try:
            return await bench.fault(grader(body))
        finally:
            await bench.sandbox.close()

    assert runner.run(run()) == "timeout"


def test_memory_is_bounded_beyond_what_is_preloaded(bench: Bench, runner: asyncio.Runner) -> None:
    fits = "return len(bytearray(200 * 2**20)) / 2**20"

    assert runner.run(bench.run(grader(fits))) == 200.0
    assert runner.run(bench.run(grader("import json, sympy\n---\n" + fits))) == 200.0
    assert "MemoryError" in runner.run(bench.fault(grader("return len(bytearray(300 * 2**20))")))
    assert "OSError: [Errno 12]" in runner.run(bench.fault(grader("import mmap\nmmap.mmap(-1, 300 * 2**20)")))


def test_threads_are_bounded(bench: Bench, runner: asyncio.Runner) -> None:
    body = (
        "import threading, time\nthreading.stack_size(32768)\nn = 0\ntry:\n"
        "    while n < 10000: threading.Thread(target=time.sleep, args=(60,)).start(); n += 1\n"
        "except RuntimeError: pass\nreturn n"
    )
    num_threads = runner.run(bench.run(grader(body)))

    bound = 2 * bench.limits.num_threads if is_root() or bench.level is Level.STRONG else 4096
    assert 0 < num_threads <= bound


def test_limits_cannot_be_raised(bench: Bench, runner: asyncio.Runner) -> None:
    body = "import resource as r\n---\nr.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))"

    assert "Error" in runner.run(bench.fault(grader(body)))


def test_without_a_folder_nothing_can_be_written(bench: Bench, runner: asyncio.Runner) -> None:
    if bench.level is not Level.KERNEL:
        pytest.skip("at the level strong calls have a folder")
    for path in ("x", "/tmp/x", "/dev/null", "/dev/shm/x"):
        assert "PermissionError" in runner.run(bench.fault(grader(f"open({path!r}, 'w')")))
    assert "FileNotFoundError" in runner.run(bench.fault(grader("import tempfile\ntempfile.mkdtemp()")))


def test_a_call_has_a_folder_that_is_empty_and_its_own(folder_bench: Bench, runner: asyncio.Runner) -> None:
    body = (
        "import os, tempfile\nassert os.listdir('.') == []\nassert tempfile.gettempdir() == os.getcwd()\n"
        "assert os.path.expanduser('~') == os.getcwd()\nos.makedirs('a/b/c')\nos.symlink('/', 'a/link')\n"
        "open('a/b/file', 'w').write('text')\nos.rename('a/b/file', 'moved')\nreturn len(open('moved').read())"
    )
    for _ in range(3):
        assert runner.run(folder_bench.run(grader(body))) == 4.0


@pytest.mark.parametrize(
    "body",
    [
        "import os\nos.umask(0)\nos.mkdir('x')\nopen('x/y', 'w')\nos.mkdir('x/closed', 0)",
        "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')",
        "for n in range(1500): open(str(n), 'w')",
        "import os\nfor n in range(900): os.symlink('/etc', str(n))",
        "open('x', 'wb').write(bytes(6 * 2**20))",
        "import os\nos.mkdir('\\udcff' * 80)\nopen(b'\\xff\\n', 'w')",
    ],
)
def test_whatever_is_left_in_it_is_gone(folder_bench: Bench, runner: asyncio.Runner, body: str) -> None:
    source = grader(
        f"import os\nassert not os.listdir('.')\nassert os.statvfs('.').f_bfree > 7 * 2**8\n{body}\nreturn 1"
    )
    for _ in range(3):
        assert runner.run(folder_bench.run(source)) == 1.0


def test_files_are_bounded_together(folder_bench: Bench, runner: asyncio.Runner) -> None:
    body = "for n in range(3): open(str(n), 'wb').write(bytes(3 * 2**20))"

    assert "No space left" in runner.run(folder_bench.fault(grader(body)))
    assert "OSError" in runner.run(folder_bench.fault(grader("open('x', 'wb').truncate(9 * 2**20)")))


def test_the_number_of_files_is_bounded(folder_bench: Bench, runner: asyncio.Runner) -> None:
    body = "import itertools\nfor n in itertools.count(): open(str(n), 'w')"

    assert runner.run(folder_bench.fault(grader(body))) == "too many files"


def test_calls_at_the_same_time_do_not_see_each_others_folders(folder_bench: Bench, runner: asyncio.Runner) -> None:
    """The first waits for the second's file, in vain, and tries to look into every folder beside its own."""
    body = (
        "import os, time\nopen('mine', 'w').write('x')\ndeadline = time.monotonic() + 1\nfound = 0\n"
        "while time.monotonic() < deadline:\n    for slot in range(2):\n"
        "        try: found += f'/tmp/{slot}' != os.getcwd() and len(os.listdir(f'/tmp/{slot}')) + 1\n"
        "        except PermissionError: pass\nreturn found"
    )

    async def run() -> list[float]:
        return await asyncio.gather(*(folder_bench.run(grader(body)) for _ in range(2)))

    assert runner.run(run()) == [0.0, 0.0]
