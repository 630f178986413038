"""What ends a command before its work is done, and the exit codes."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    SUCCESS = 0
    #: The server refused; or the job that was watched has failed, the grader that was tried has.
    REFUSED = 1
    #: The command line is wrong, or names a file that is not there.
    USAGE = 2
    #: No server answers.
    UNREACHABLE = 3
    #: The job that was watched was cancelled.
    CANCELLED = 4
    #: By Ctrl-C.
    INTERRUPTED = 130


class Problem(Exception):
    """`message`: what is wrong and what to do about it, in one line."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        self.message = message
        self.exit_code = exit_code
        super().__init__(message)


class Refused(Problem):
    """The server's own words."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.REFUSED)


class Misused(Problem):
    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.USAGE)


class Unreachable(Problem):
    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.UNREACHABLE)
