"""Attacks on the answer: what `grade` returns, and what is written into the descriptors that it goes through."""

from __future__ import annotations

import textwrap

from tests.failure.sandbox.attack import FAULT, Attack, harmless, stopped

_RUNTIME = r"RuntimeFault: .+"


def _returns(name: str, expression: str, outcome: str = _RUNTIME, head: str = "") -> Attack:
    return stopped(
        f"returns {name}", f"{textwrap.dedent(head)}\ndef grade(sample, item):\n    return {expression}\n", outcome
    )


_RESULTS = [
    _returns("nothing", "None"),
    _returns("not a number", "float('nan')"),
    _returns("infinity", "float('inf')"),
    _returns("negative infinity", "-float('inf')"),
    _returns("a text", "'1.0'"),
    _returns("bytes", "b'1.0'"),
    _returns("a list", "[1.0]"),
    _returns("a dictionary", "{'value': 1.0}"),
    _returns("a complex number", "1j"),
    _returns("a whole number that no float holds", "10**400"),
    _returns("a whole number of 100 MB", "1 << (8 * 10**8)", FAULT),
    _returns("a type", "float"),
    _returns("a function", "grade"),
    _returns("a numpy array", "numpy.ones(3)", head="import numpy"),
    _returns("numpy's not a number", "numpy.float64('nan')", head="import numpy"),
    _returns("numpy's infinity", "numpy.float32('inf')", head="import numpy"),
    _returns(
        "a text that is a kind of float",
        "Evil(0.5)",
        r"0\.5|" + FAULT,
        """
class Evil(float):
    def __float__(self): return float('nan')
    def __repr__(self): return '1e999, "x": 1'
    __str__ = __format__ = __reduce__ = __repr__
    def __eq__(self, other): return True
    def is_integer(self): return True
    def hex(self): return 'evil'
    def item(self): return 'evil'
""",
    ),
    _returns(
        "a kind of whole number that lies",
        "Evil(1)",
        r"1\.0|" + FAULT,
        """
class Evil(int):
    def __float__(self): return float('inf')
    def __index__(self): return 10**400
    def __repr__(self): return 'NaN'
    __str__ = __format__ = __repr__
""",
    ),
    _returns(
        "what turns into not a number",
        "Evil()",
        FAULT,
        """
        class Evil:
            def __float__(self): return float('nan')
        """,
    ),
    _returns(
        "what raises when it turns into a number",
        "Evil()",
        FAULT,
        """
        class Evil:
            def __float__(self): raise SystemExit(0)
            item = __float__
        """,
    ),
    _returns(
        "what loops when it turns into a number",
        "Evil()",
        FAULT,
        """
        class Evil:
            def item(self):
                while True: pass
            __float__ = item
        """,
    ),
    _returns(
        "what exits when it is shown",
        "Evil()",
        FAULT,
        """
        class Evil:
            def __repr__(self): os._exit(0)
            __str__ = __repr__
        """,
    ),
    _returns(
        "what has itself as its item",
        "Evil()",
        FAULT,
        """
        class Evil:
            def item(self): return self
        """,
    ),
    _returns(
        "what has not a number as its item",
        "Evil()",
        FAULT,
        """
        class Evil:
            def item(self): return float('nan')
        """,
    ),
    _returns(
        "what says that it is a float",
        "Evil()",
        FAULT,
        """
        class Evil:
            __class__ = float
            def __float__(self): return float('nan')
            def __getattr__(self, name): return self
        """,
    ),
    _returns(
        "what has every attribute",
        "Evil()",
        FAULT,
        """
        class Evil:
            def __getattr__(self, name): return Evil()
            def __call__(self, *args): return self
        """,
    ),
    _returns(
        "what has a type with a type of its own",
        "Evil()",
        FAULT,
        """
        class Meta(type):
            def __instancecheck__(*args): return True
            def __subclasscheck__(*args): return True
            __name__ = None
        class Evil(metaclass=Meta): pass
        """,
    ),
]

#: Some text for each way to misread an answer; the right shape is among them, since its own score anyone may forge.
_FORGED = """
FORGED = [
    b'{"value": NaN}', b'{"value": Infinity}', b'{"value": 1e999}', b'{"value": -1e999}', b'{"value": "1.0"}',
    b'{"value": null}', b'{"value": true}', b'{"value": [1]}', b'{"value": 1, "value": NaN}',
    b'{"value": 1, "more": 2}', b'{"value": 1}{"value": 2}', b'{"value": 1}\\n{"value": 2}\\n', b'{}', b'[]', b'1',
    b'NaN', b'', b'\\0', b'\\xff\\xfe', b'not JSON', b'{"value": ' + b'1' * 5000 + b'}', b'[' * 100_000,
    b'{"fault": "timeout"}', b'{"error": "' + b'x' * 100_000 + b'"}', b'{"error": 1}', b'{"error": null}',
    b'{"details": []}', b'x' * (1 << 20), bytes(1 << 20), b'\\x80\\x04N.', bytes(range(256)) * 16,
]

def descriptors():
    for fd in range(1024):
        try:
            os.fstat(fd)
        except OSError:
            continue
        yield fd

def write(fd, data):
    try:
        os.set_blocking(fd, False)
        os.write(fd, data)
    except OSError:
        pass
"""


def _forges(name: str, body: str, outcome: str = r"-?\d+\.\d+|" + FAULT, **more: object) -> Attack:
    body = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    return harmless(name, f"{_FORGED}\ndef grade(sample, item):\n{body}\n", outcome, **more)


_FORGERIES = [
    _forges(
        f"forges an answer on every descriptor ({what})",
        f"    for fd in descriptors():\n        write(fd, FORGED[{index}])\n    {then}\n",
    )
    for index, (what, then) in enumerate(
        [
            ("not a number, then returns", "return 0.5"),
            ("infinity, then ends", "os._exit(0)"),
            ("too large, then ends", "os._exit(0)"),
            ("too small, then ends", "os._exit(0)"),
            ("a text, then ends", "os._exit(0)"),
            ("nothing, then ends", "os._exit(0)"),
            ("a truth, then ends", "os._exit(0)"),
            ("a list, then ends", "os._exit(0)"),
            ("a key twice, then ends", "os._exit(0)"),
            ("a key too many, then ends", "os._exit(0)"),
            ("two objects, then ends", "os._exit(0)"),
            ("two lines, then ends", "os._exit(0)"),
            ("an empty object, then ends", "os._exit(0)"),
            ("an empty list, then ends", "os._exit(0)"),
            ("a bare number, then ends", "os._exit(0)"),
            ("a bare not a number, then ends", "os._exit(0)"),
            ("nothing at all, then ends", "os._exit(0)"),
            ("a null byte, then ends", "os._exit(0)"),
            ("no UTF-8, then ends", "os._exit(0)"),
            ("no JSON, then ends", "os._exit(0)"),
            ("a number of 5,000 digits, then ends", "os._exit(0)"),
            ("100,000 brackets, then ends", "os._exit(0)"),
            ("a fault of the sandbox, then ends", "os._exit(0)"),
            ("a huge fault, then ends", "os._exit(0)"),
            ("a fault that is a number, then ends", "os._exit(0)"),
            ("a fault that is null, then ends", "os._exit(0)"),
            ("details that are a list, then ends", "os._exit(0)"),
            ("a megabyte, then ends", "os._exit(0)"),
            ("a megabyte of zeros, then hangs", "time.sleep(60)"),
            ("a pickle, then ends", "os._exit(0)"),
            ("every byte, then ends", "os._exit(0)"),
        ]
    )
]

_DESCRIPTORS = [
    _forges(
        "forges every answer at once",
        """
        for data in FORGED:
            for fd in descriptors():
                write(fd, data)
        return 0.5
        """,
    ),
    _forges(
        "forges an answer before it hangs",
        """
        for fd in descriptors():
            write(fd, b'{"value": 1.0}')
        time.sleep(60)
        """,
    ),
    _forges(
        "forges half an answer and ends",
        """
        for fd in descriptors():
            write(fd, b'{"val')
        os._exit(0)
        """,
    ),
    _forges(
        "forges lengths of every width",
        """
        for fd in descriptors():
            for width in '<I', '>I', '<Q', '>Q':
                write(fd, struct.pack(width, (1 << 31) - 1))
        os._exit(0)
        """,
    ),
    _forges(
        "floods every descriptor for as long as it may",
        """
        while True:
            for fd in descriptors():
                write(fd, bytes(1 << 16))
        """,
    ),
    _forges(
        "dribbles into every descriptor for as long as it may",
        """
        while True:
            for fd in descriptors():
                write(fd, b' ')
            time.sleep(0.01)
        """,
    ),
    _forges(
        "reads from every descriptor",
        """
        for fd in descriptors():
            try:
                os.set_blocking(fd, False)
                os.read(fd, 1 << 20)
            except OSError:
                pass
        return 0.5
        """,
    ),
    _forges(
        "closes every descriptor",
        """
        os.closerange(0, 1024)
        return 0.5
        """,
    ),
    _forges(
        "closes every descriptor and hangs",
        """
        os.closerange(0, 1024)
        time.sleep(60)
        """,
        FAULT,
    ),
    _forges(
        "puts one pipe over every descriptor",
        """
        read, write = os.pipe()
        for fd in list(descriptors()):
            try:
                os.dup2(write, fd)
            except OSError:
                pass
        return 0.5
        """,
    ),
    _forges(
        "shuffles its descriptors",
        """
        fds = list(descriptors())
        copies = [os.dup(fd) for fd in fds]
        for fd, copy in zip(fds, reversed(copies)):
            os.dup2(copy, fd)
        return 0.5
        """,
    ),
    _forges(
        "shuts every socket that it was given",
        """
        for fd in descriptors():
            try:
                socket.socket(fileno=os.dup(fd)).shutdown(2)
            except OSError:
                pass
        return 0.5
        """,
    ),
    _forges(
        "seals, cuts and locks every descriptor",
        """
        import fcntl
        for fd in descriptors():
            for change in (
                lambda: fcntl.fcntl(fd, 1033, 0xF), lambda: os.ftruncate(fd, 1 << 40),
                lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
                lambda: fcntl.fcntl(fd, 1031, 4096), lambda: os.lseek(fd, 1 << 30, 0),
                lambda: os.fchmod(fd, 0), lambda: fcntl.fcntl(fd, fcntl.F_SETFL, 0o2000000 | os.O_APPEND),
            ):
                try:
                    change()
                except OSError:
                    pass
        return 0.5
        """,
    ),
    _forges(
        "leaves a thread that goes on to forge",
        """
        def forge():
            while True:
                for fd in descriptors():
                    write(fd, b'{"value": NaN}')
        threading.Thread(target=forge, daemon=True).start()
        return 0.5
        """,
    ),
    _forges(
        "leaves a forgery to the end of the process",
        """
        import atexit
        def forge():
            for fd in descriptors():
                write(fd, b'{"value": NaN}')
        atexit.register(forge)
        return 0.5
        """,
    ),
    _forges(
        "answers from a finalizer",
        """
        class Evil:
            def __del__(self):
                for fd in descriptors():
                    write(fd, b'{"value": NaN}')
        global evil
        evil = Evil()
        return 0.5
        """,
    ),
]

ATTACKS: list[Attack] = [*_RESULTS, *_FORGERIES, *_DESCRIPTORS]
