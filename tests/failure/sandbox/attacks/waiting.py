"""Attacks that never come to an end: they compute, ignore what would stop them, or wait."""

from __future__ import annotations

import textwrap

from tests.failure.sandbox.attack import Attack, harmless, stopped


def _endless(name: str, body: str, head: str = "") -> Attack:
    body = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    source = f"{textwrap.dedent(head)}\ndef grade(sample, item):\n{body}\n    return 0.5\n"
    return stopped(name, source, outcome="SandboxFault: timeout")


_LOOPS = [
    _endless(
        "loops for ever",
        """
        while True:
            pass
        """,
    ),
    _endless("loops inside C", "sum(range(1 << 62))"),
    _endless(
        "loops inside C over an iterator",
        "collections.deque(itertools.repeat(None), maxlen=0)",
        "import collections, itertools",
    ),
    _endless("matches a regular expression for ever", "re.match('(a+)+$', 'a' * 64 + 'b')", "import re"),
    _endless("raises a number to a huge power", "return float(3 ** (1 << 40) % 2)"),
    _endless("computes a huge factorial", "math.factorial(1 << 30)", "import math"),
    _endless(
        "sorts what never compares",
        "sorted([Evil() for _ in range(8)])",
        """
        class Evil:
            def __lt__(self, other):
                while True: pass
        """,
    ),
    _endless(
        "hashes for ever",
        "{Evil(): 1}",
        """
        class Evil:
            def __hash__(self):
                while True: pass
        """,
    ),
    _endless(
        "searches for ever",
        """
        (b'a' * 10**8 + b'b').find(b'a' * 10**4 + b'b' + b'a' * 10**4)
        while True: ('a' * 10**6).count('a' * 5 * 10**5 + 'b' + 'a' * 5 * 10**5)
        """,
    ),
    _endless(
        "catches all and loops",
        """
        while True:
            try:
                while True: pass
            except BaseException:
                pass
        """,
    ),
    _endless("loops while it is imported", "pass", "while True: pass"),
    _endless(
        "loops in a decorator",
        "pass",
        """
        def evil(function):
            while True: pass
        @evil
        """,
    ),
    _endless(
        "loops in a metaclass",
        "pass",
        """
        class Meta(type):
            def __prepare__(*args):
                while True: pass
        class A(metaclass=Meta): pass
        """,
    ),
    _endless(
        "loops in a finally clause",
        """
        try:
            return 1.0
        finally:
            while True: pass
        """,
    ),
    _endless(
        "loops in many threads",
        """
        for _ in range(4):
            threading.Thread(target=sum, args=(range(1 << 62),)).start()
        while True: pass
        """,
    ),
]

_SIGNALS = [
    _endless(
        "ignores every signal and loops",
        """
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            pass
        """,
    ),
    _endless(
        "handles every signal and loops",
        """
        for number in range(1, 65):
            try:
                signal.signal(number, lambda *_: None)
            except (OSError, ValueError):
                pass
        while True:
            pass
        """,
    ),
    _endless(
        "blocks every signal and loops",
        """
        signal.pthread_sigmask(signal.SIG_SETMASK, range(1, 65))
        while True:
            pass
        """,
    ),
    _endless(
        "blocks every signal and sleeps",
        """
        signal.pthread_sigmask(signal.SIG_SETMASK, range(1, 65))
        time.sleep(60)
        """,
    ),
    _endless("waits for a signal", "signal.sigwait(set(range(1, 32)) - {9, 19})"),
    _endless("pauses", "signal.pause()"),
    _endless(
        "sets off its own alarm again and again",
        """
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        while True:
            pass
        """,
    ),
    harmless(
        "leaves an alarm behind",
        """
        def grade(sample, item):
            signal.alarm(1)
            return 0.25
        """,
        outcome=r"0\.25",
    ),
    harmless(
        "leaves a watchdog of faulthandler behind",
        """
        import faulthandler
        def grade(sample, item):
            faulthandler.dump_traceback_later(0.01, repeat=True, file=2, exit=True)
            return 0.25
        """,
    ),
]

_WAITS = [
    _endless("sleeps", "time.sleep(60)"),
    _endless(
        "waits for a lock",
        """
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
        """,
    ),
    _endless(
        "waits for a pipe",
        """
        read, write = os.pipe()
        os.read(read, 1)
        """,
    ),
    _endless(
        "waits for a thread that never ends",
        """
        thread = threading.Thread(target=time.sleep, args=(60,))
        thread.start()
        thread.join()
        """,
    ),
    _endless(
        "waits in select",
        """
        import select
        select.select([], [], [], 60)
        """,
    ),
    _endless(
        "waits in asyncio's stead",
        """
        import concurrent.futures
        concurrent.futures.Future().result()
        """,
    ),
]

ATTACKS: list[Attack] = [*_LOOPS, *_SIGNALS, *_WAITS]
