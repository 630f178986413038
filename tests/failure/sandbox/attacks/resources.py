"""Attacks that take all there is: memory, the stack, threads, descriptors, disk."""

from __future__ import annotations

from tests.failure.sandbox.attack import FAULT, Attack, harmless, refused, stopped

_MEMORY = [
    stopped(
        "takes memory in one piece",
        """
        def grade(sample, item):
            return len(bytearray(1 << 34))
        """,
        FAULT,
    ),
    stopped(
        "takes memory in pieces",
        """
        def grade(sample, item):
            held = []
            while True:
                held.append(bytearray(1 << 20))
        """,
        FAULT,
    ),
    stopped(
        "doubles a list",
        """
        def grade(sample, item):
            held = [0]
            while True:
                held += held
        """,
        FAULT,
    ),
    stopped(
        "doubles a text",
        """
        def grade(sample, item):
            held = 'x'
            while True:
                held += held
        """,
        FAULT,
    ),
    stopped(
        "writes a number of a billion digits",
        """
        def grade(sample, item):
            return len('%10000000000d' % 1)
        """,
        FAULT,
    ),
    stopped(
        "maps memory",
        """
        import mmap
        def grade(sample, item):
            held = []
            while True:
                held.append(mmap.mmap(-1, 1 << 24))
        """,
        FAULT,
    ),
    stopped(
        "maps memory by the C library",
        """
        def grade(sample, item):
            libc = ctypes.CDLL(None)
            libc.malloc.restype = ctypes.c_void_p
            while True:
                memory = libc.malloc(ctypes.c_size_t(1 << 24))
                if not memory:
                    raise MemoryError
                ctypes.memset(memory, 1, 1 << 24)
        """,
        FAULT,
    ),
    stopped(
        "takes memory by numpy",
        """
        import numpy
        def grade(sample, item):
            return float(numpy.ones(1 << 32).sum())
        """,
        FAULT,
    ),
    stopped(
        "takes memory and catches the failure",
        """
        def grade(sample, item):
            held = []
            while True:
                try:
                    held.append(bytearray(1 << 20))
                except MemoryError:
                    pass
        """,
        FAULT,
    ),
    stopped(
        "nests lists without end",
        """
        def grade(sample, item):
            held = []
            while True:
                held = [held, held]
        """,
        FAULT,
    ),
    stopped(
        "makes exceptions of exceptions without end",
        """
        def grade(sample, item):
            error = None
            while True:
                try:
                    raise ValueError from error
                except ValueError as new:
                    error = new
        """,
        FAULT,
    ),
    stopped(
        "keeps memory in pipes",
        """
        def grade(sample, item):
            held = []
            while True:
                read, write = os.pipe()
                os.set_blocking(write, False)
                held.append((read, write))
                os.write(write, bytes(1 << 16))
        """,
        FAULT,
    ),
    stopped(
        "keeps memory in files that are only in memory",
        """
            def grade(sample, item):
                num_bytes = 0
                try:
                    while True:
                        fd = os.memfd_create("x")
                        for _ in range(64):
                            num_bytes += os.write(fd, bytes(1 << 20))
                except OSError:
                    pass
                if num_bytes > item["most_bytes"]:
                    return 1.0
                return 0.0
            """,
        r"0\.0|SandboxFault: .+",
        item={"most_bytes": 1 << 29},
    ),
    stopped(
        "locks its memory",
        """
        import mmap
        def grade(sample, item):
            libc = ctypes.CDLL(None)
            memory = mmap.mmap(-1, 1 << 26)
            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            return float(libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(1 << 26)) == 0)
        """,
        r"0\.0|" + FAULT,
    ),
]

_DEPTH = [
    stopped(
        "recurses",
        """
        def grade(sample, item):
            return grade(sample, item)
        """,
        FAULT,
    ),
    stopped(
        "recurses beyond Python's own limit",
        """
        sys.setrecursionlimit(1 << 30)
        def grade(sample, item):
            return grade(sample, item)
        """,
        FAULT,
    ),
    stopped(
        "recurses inside C",
        """
        sys.setrecursionlimit(1 << 30)
        def grade(sample, item):
            held = []
            for _ in range(10**6):
                held = [held]
            return len(repr(held))
        """,
        FAULT,
    ),
    harmless(
        "frees what is nested deeply",
        """
        def grade(sample, item):
            held = []
            for _ in range(10**5):
                held = [held]
            return 0.25
        """,
        r"0\.25",
    ),
    stopped(
        "recurses in a thread with a huge stack",
        """
        sys.setrecursionlimit(1 << 30)
        threading.stack_size(1 << 40)
        def grade(sample, item):
            threading.Thread(target=lambda: grade(sample, item)).start()
        """,
        FAULT,
    ),
    stopped(
        "compiles what is nested deeply",
        """
        def grade(sample, item):
            return eval('(' * 10**5 + '1' + ')' * 10**5)
        """,
        FAULT,
    ),
    stopped(
        "overruns the stack by the C library",
        """
        def grade(sample, item):
            compare = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: grade(sample, item))
            ctypes.CDLL(None).qsort(ctypes.create_string_buffer(64), 64, 1, compare)
        """,
        FAULT,
    ),
]

_NUMBERS = [
    stopped(
        "starts threads without end",
        """
            def grade(sample, item):
                num_threads = 0
                try:
                    while num_threads < 100_000:
                        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                        num_threads += 1
                except (RuntimeError, MemoryError):
                    pass
                return float(num_threads > 5000)
            """,
        r"0\.0|" + FAULT,
    ),
    stopped(
        "starts threads that start threads",
        """
            def start():
                while True:
                    try:
                        threading.Thread(target=start, daemon=True).start()
                    except (RuntimeError, MemoryError):
                        pass

            def grade(sample, item):
                start()
            """,
        FAULT,
    ),
    stopped(
        "starts threads past Python",
        """
            def grade(sample, item):
                import _thread
                threading.stack_size(32768)
                num_threads = 0
                try:
                    while num_threads < 100_000:
                        _thread.start_new_thread(time.sleep, (60,))
                        num_threads += 1
                except (RuntimeError, MemoryError):
                    pass
                return float(num_threads > 5000)
            """,
        r"0\.0|" + FAULT,
    ),
    refused(
        "opens descriptors without end",
        """
        for _ in range(512):
            os.dup(0)
        """,
    ),
    refused(
        "opens pipes without end",
        """
        for _ in range(512):
            os.pipe()
        """,
    ),
    refused(
        "queues signals without end",
        """
        for _ in range(300_000):
            ctypes.set_errno(0)
            if libc.timer_create(0, None, ctypes.byref(ctypes.c_void_p())) != 0:
                raise PermissionError
        """,
        prelude="""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        """,
        is_real=False,
    ),
]

_DISK = [
    refused(
        "writes a file without end",
        """
        with open('big', 'wb') as file:
            for _ in range(4096):
                file.write(bytes(1 << 20))
        """,
        is_real=False,
    ),
    refused(
        "writes many large files",
        """
        for index in range(64):
            with open(str(index), 'wb') as file:
                file.write(bytes(1 << 23))
        """,
        is_real=False,
    ),
    refused(
        "makes a file with a huge hole",
        """
        with open('sparse', 'wb') as file:
            file.truncate(1 << 50)
        """,
        is_real=False,
    ),
    refused(
        "reserves a huge file", "os.posix_fallocate(os.open('big', os.O_CREAT | os.O_RDWR), 0, 1 << 40)", is_real=False
    ),
    refused(
        "fills a file that has no name",
        """
        with open('gone', 'wb') as file:
            os.unlink('gone')
            for _ in range(4096):
                file.write(bytes(1 << 20))
        """,
        is_real=False,
    ),
    stopped(
        "makes files without end",
        """
            def grade(sample, item):
                try:
                    for index in range(10**7):
                        open(str(index), "x").close()
                except OSError:
                    return 0.0
                return 1.0
            """,
        r"0\.0|SandboxFault: .+",
    ),
    stopped(
        "makes folders in folders without end",
        """
            def grade(sample, item):
                try:
                    for _ in range(10**7):
                        os.mkdir("x")
                        os.chdir("x")
                except OSError:
                    return 0.0
                return 1.0
            """,
        r"0\.0|SandboxFault: .+",
    ),
    harmless(
        "writes to its standard output without end",
        """
        def grade(sample, item):
            for _ in range(1 << 12):
                print('x' * (1 << 16))
            return 0.25
        """,
        r"0\.25|" + FAULT,
    ),
    harmless(
        "writes to its standard error without end",
        """
        def grade(sample, item):
            for _ in range(1 << 12):
                sys.stderr.write('x' * (1 << 16))
            return 0.25
        """,
        r"0\.25|" + FAULT,
    ),
    harmless(
        "writes to its standard output past Python",
        """
        def grade(sample, item):
            for _ in range(1 << 12):
                os.write(1, b'x' * (1 << 16))
            return 0.25
        """,
        r"0\.25|" + FAULT,
    ),
]

ATTACKS: list[Attack] = [*_MEMORY, *_DEPTH, *_NUMBERS, *_DISK]
