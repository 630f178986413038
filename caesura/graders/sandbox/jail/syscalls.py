"""The system calls that a grader may make; all others are refused.

Numbers are from Linux: arch/x86/entry/syscalls/syscall_64.tbl, and include/uapi/asm-generic/unistd.h for aarch64.
"""

from __future__ import annotations

from typing import NamedTuple

#: Read and written memory, time, signals of one's own, threads, what is already open: name, x86-64, aarch64.
_ALWAYS = """
    read 0 63               write 1 64              readv 19 65             writev 20 66
    pread64 17 67           pwrite64 18 68          preadv 295 69           pwritev 296 70
    close 3 57              close_range 436 436     lseek 8 62              fstat 5 80
    newfstatat 262 79       stat 4 -                lstat 6 -               statx 332 291
    mmap 9 222              mprotect 10 226         munmap 11 215           mremap 25 216
    madvise 28 233          brk 12 214              msync 26 227            fadvise64 221 223
    rt_sigaction 13 134     rt_sigprocmask 14 135   rt_sigreturn 15 139     rt_sigpending 127 136
    rt_sigsuspend 130 133   rt_sigtimedwait 128 137 sigaltstack 131 132     alarm 37 -
    getitimer 36 102        setitimer 38 103        pause 34 -              restart_syscall 219 128
    poll 7 -                ppoll 271 73            select 23 -             pselect6 270 72
    pipe 22 -               pipe2 293 59            dup 32 23               dup2 33 -
    dup3 292 24             access 21 -             faccessat 269 48        faccessat2 439 439
    readlink 89 -           readlinkat 267 78       getcwd 79 17            chdir 80 49
    fchdir 81 50            getdents 78 -           getdents64 217 61       statfs 137 43
    fstatfs 138 44          umask 95 166            uname 63 160            sysinfo 99 179
    getpid 39 172           getppid 110 173         gettid 186 178          getuid 102 174
    geteuid 107 175         getgid 104 176          getegid 108 177         getresuid 118 148
    getresgid 120 150       getgroups 115 158       getpgrp 111 -           getrlimit 97 163
    getrusage 98 165        times 100 153           clock_gettime 228 113   clock_getres 229 114
    clock_nanosleep 230 115 nanosleep 35 101        gettimeofday 96 169     time 201 -
    sched_yield 24 124      getcpu 309 168          futex 202 98            set_robust_list 273 99
    set_tid_address 218 96  rseq 334 293            exit 60 93              exit_group 231 94
    getrandom 318 278       sched_get_priority_max 146 125                  sched_get_priority_min 147 126
"""

#: Where the call has a folder of its own; Landlock decides on the paths. Nothing that changes modes, owners or
#: times is here: Landlock does not look at these, and the files of an ordinary user's server are the grader's too.
_FILES = """
    open 2 -                openat 257 56           fsync 74 82             fdatasync 75 83
    ftruncate 77 46         fallocate 285 47        mkdir 83 -              mkdirat 258 34
    rmdir 84 -              unlink 87 -             unlinkat 263 35         rename 82 -
    renameat 264 38         renameat2 316 276       symlink 88 -            symlinkat 266 36
"""

#: Allowed or not by their arguments.
_CHECKED = """
    open 2 -                openat 257 56           ioctl 16 29             fcntl 72 25
    prctl 157 167           prlimit64 302 261       sched_getaffinity 204 123
    clone 56 220
"""

#: Said to be unknown, so that the C library takes the older call, whose arguments can be checked.
_UNKNOWN = """
    clone3 435 435          openat2 437 437         membarrier 324 283
"""


class Architecture(NamedTuple):
    """What a filter must know of a kind of processor."""

    #: AUDIT_ARCH_* of include/uapi/linux/audit.h, as seccomp tells it.
    audit: int
    always: dict[str, int]
    files: dict[str, int]
    checked: dict[str, int]
    unknown: dict[str, int]
    #: Set in numbers of the x32 calls, a second table behind the same audit value.
    foreign_bit: int | None


def _numbers(table: str, column: int) -> dict[str, int]:
    words = table.split()
    rows = zip(words[::3], words[1::3], words[2::3], strict=True)
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def _architecture(audit: int, column: int, foreign_bit: int | None) -> Architecture:
    always, files, checked, unknown = (_numbers(table, column) for table in (_ALWAYS, _FILES, _CHECKED, _UNKNOWN))
    return Architecture(audit, always, files, checked, unknown, foreign_bit)


#: By the names that `os.uname().machine` gives them.
ARCHITECTURES = {
    "x86_64": _architecture(0xC000003E, 1, 0x40000000),
    "aarch64": _architecture(0xC00000B7, 2, None),
}
