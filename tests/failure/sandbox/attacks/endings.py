"""Attacks on the way a call ends: exits, crashes, and exceptions that are hard to tell."""

from __future__ import annotations

import textwrap

from tests.failure.sandbox.attack import FAULT, Attack, harmless, stopped


def _ends(name: str, body: str, outcome: str = FAULT, head: str = "") -> Attack:
    body = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    return stopped(name, f"{textwrap.dedent(head)}\ndef grade(sample, item):\n{body}\n", outcome)


_EXITS = [
    _ends("ends its process", "os._exit(0)"),
    _ends("ends its process with a status", "os._exit(77)"),
    _ends("exits", "sys.exit()"),
    _ends("exits with a score", "sys.exit(0.5)"),
    _ends("exits while it is imported", "return 1.0", head="sys.exit(0)"),
    _ends("ends its process while it is imported", "return 1.0", head="os._exit(0)"),
    _ends("exits by the C library", "ctypes.CDLL(None).exit(0)"),
    _ends("aborts", "os.abort()"),
    _ends("kills itself", "signal.raise_signal(signal.SIGKILL)"),
    _ends(
        "stops itself",
        """
        signal.raise_signal(signal.SIGSTOP)
        return 0.5
        """,
        r"0\.5|" + FAULT,
    ),
    _ends("reads the null pointer", "ctypes.string_at(0)"),
    _ends("jumps to the null pointer", "ctypes.CFUNCTYPE(None)()()"),
    _ends("frees what was never allocated", "ctypes.CDLL(None).free(ctypes.c_void_p(8))"),
    _ends("writes over its interpreter", "ctypes.memset(id(type(None)), 255, 1 << 12)"),
    _ends("unmaps its own memory", "ctypes.CDLL(None).munmap(ctypes.c_void_p(id(grade) & ~4095), 1 << 24)"),
    _ends(
        "ends in a thread",
        """
        thread = threading.Thread(target=os._exit, args=(0,))
        thread.start()
        thread.join()
        """,
    ),
    harmless(
        "raises in a thread",
        """
        def grade(sample, item):
            thread = threading.Thread(target=lambda: 1 / 0)
            thread.start()
            thread.join()
            return 0.25
        """,
        r"0\.25|" + FAULT,
    ),
    harmless(
        "leaves threads running",
        """
        def grade(sample, item):
            for _ in range(4):
                threading.Thread(target=time.sleep, args=(60,)).start()
            return 0.25
        """,
        r"0\.25",
    ),
    harmless(
        "hangs at the end of its process",
        """
        import atexit
        def grade(sample, item):
            atexit.register(time.sleep, 60)
            return 0.25
        """,
        r"0\.25",
    ),
    harmless(
        "hangs in a finalizer",
        """
        class Evil:
            def __del__(self): time.sleep(60)
        def grade(sample, item):
            global evil
            evil = Evil()
            return 0.25
        """,
        r"0\.25",
    ),
    harmless(
        "hangs in the finalizer of its result",
        """
        class Evil(float):
            def __del__(self): time.sleep(60)
        def grade(sample, item):
            return Evil(0.25)
        """,
        r"0\.25|" + FAULT,
    ),
    harmless(
        "closes its standard output",
        """
        def grade(sample, item):
            os.close(1)
            os.close(2)
            sys.stdout.close()
            return 0.25
        """,
        r"0\.25",
    ),
    harmless(
        "replaces its standard output",
        """
        def grade(sample, item):
            sys.stdout = sys.stderr = sys.stdin = None
            return 0.25
        """,
        r"0\.25",
    ),
    harmless(
        "prints what cannot be encoded",
        """
        def grade(sample, item):
            print('\\ud800')
            return 0.25
        """,
        r"0\.25|RuntimeFault: .+",
    ),
]

_RAISES = [
    _ends("raises SystemExit of itself", "raise SystemExit(SystemExit())"),
    _ends("raises KeyboardInterrupt", "raise KeyboardInterrupt"),
    _ends("raises GeneratorExit", "raise GeneratorExit"),
    _ends("raises StopIteration", "raise StopIteration"),
    _ends("raises MemoryError", "raise MemoryError"),
    _ends("raises asyncio's CancelledError", "raise asyncio.CancelledError", head="import asyncio"),
    _ends("raises BaseException", "raise BaseException"),
    _ends("raises a warning", "raise Warning('x')"),
    _ends("raises a message of 100 MB", "raise ValueError('x' * 10**8)"),
    _ends("raises a message of 10,000 lines", "raise ValueError('line\\n' * 10_000)"),
    _ends("raises a message that cannot be encoded", "raise ValueError('\\ud800' * 100)"),
    _ends("raises a message of null bytes and escapes", "raise ValueError('\\0\\x1b[2J\\r\\u202e' * 100)"),
    _ends("raises a message that looks like an answer", 'raise ValueError(\'"}\\n{"value": 1.0}\\n\')'),
    _ends("raises bytes", "raise ValueError(bytes(range(256)))"),
    _ends(
        "raises what cannot be shown",
        "raise Evil",
        head="""
        class Evil(Exception):
            def __str__(self): raise self
            __repr__ = __str__
        """,
    ),
    _ends(
        "raises what loops when it is shown",
        "raise Evil",
        head="""
        class Evil(Exception):
            def __str__(self):
                while True: pass
            __repr__ = __str__
        """,
    ),
    _ends(
        "raises what ends the process when it is shown",
        "raise Evil",
        head="""
        class Evil(Exception):
            def __str__(self): os._exit(0)
            __repr__ = __str__
        """,
    ),
    _ends(
        "raises what is shown as no text",
        "raise Evil",
        head="""
        class Evil(Exception):
            def __str__(self): return 7
            __repr__ = __str__
        """,
    ),
    _ends(
        "raises what is shown as a kind of text",
        "raise Evil",
        head="""
        class Text(str):
            def __str__(self): return self
            encode = replace = None
            def __len__(self): return -1
        class Evil(Exception):
            def __str__(self): return Text('evil')
        """,
    ),
    _ends(
        "raises with itself as its cause",
        """
        error = ValueError('x')
        error.__cause__ = error
        raise error
        """,
    ),
    _ends(
        "raises with a circle of causes",
        """
        first, second = ValueError('x'), ValueError('y')
        first.__cause__, second.__cause__ = second, first
        first.__context__, second.__context__ = second, first
        raise first
        """,
    ),
    _ends(
        "raises with 10,000 causes",
        """
        error = None
        for _ in range(10_000):
            new = ValueError('x')
            new.__cause__ = error
            error = new
        raise error
        """,
    ),
    _ends("raises a group of 100,000", "raise ExceptionGroup('x', [ValueError(str(i)) for i in range(10**5)])"),
    _ends(
        "raises groups in groups",
        """
        error = ValueError()
        for _ in range(10_000):
            error = ExceptionGroup('x', [error])
        raise error
        """,
    ),
    _ends(
        "raises with notes that cannot be shown",
        """
        error = ValueError('x')
        error.__notes__ = [Evil()] * 1000
        raise error
        """,
        head="""
        class Evil:
            def __str__(self): os._exit(0)
            __repr__ = __str__
        """,
    ),
    _ends(
        "raises a syntax error that lies about its place",
        """
        error = SyntaxError('x')
        error.filename, error.lineno, error.offset, error.text = '/etc/passwd', 1, 1 << 40, Evil('x')
        raise error
        """,
        head="""
        class Evil(str):
            def rstrip(self, *_): os._exit(0)
            lstrip = strip = rstrip
        """,
    ),
    _ends(
        "raises from a class that lies about its name",
        "raise Evil",
        head="""
        class Meta(type):
            @property
            def __name__(cls): os._exit(0)
        class Evil(Exception, metaclass=Meta): pass
        """,
    ),
    _ends("raises from a class with a name of 10 MB", "raise type('x' * 10**7, (Exception,), {})"),
    _ends(
        "raises with a property for its traceback",
        "raise Evil",
        head="""
        class Evil(Exception):
            @property
            def __traceback__(self): os._exit(0)
            __cause__ = __context__ = __traceback__
        """,
    ),
    _ends("raises from code that lies about its file", "exec(compile('\\n' * 70_000 + '1/0', '/etc/passwd', 'exec'))"),
    _ends(
        "raises in a frame 900 deep",
        """
        def down(depth):
            return 1 / depth + down(depth - 1)
        down(900)
        """,
    ),
    _ends("asks linecache to open a file while it fails", "exec(compile('1/0', sample['host']['file'], 'exec'))"),
]

ATTACKS: list[Attack] = [*_EXITS, *_RAISES]
