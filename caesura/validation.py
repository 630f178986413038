"""Whether a job's files are fit to train on: small ones are read here, large ones by a process of their own.

Half a million lines keep Python's lock for seconds, in which no request would be answered. So a large file is read by
`python -m caesura.validation`, a program as `programs` has it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from caesura.data.prompts import Needed
from caesura.data.tally import file_to_json, to_json
from caesura.data.validate import Report, validate
from caesura.errors import CaesuraError
from caesura.executors import describe_exit
from caesura.graders.variables import needed_by
from caesura.jobs import Job, JobError
from caesura.programs import read_request
from caesura.storage import Storage

logger = logging.getLogger(__name__)

#: A file of so many bytes is read in place: in less time than a process needs to start.
IN_PLACE_BYTES = 2 * 2**20
#: Of so many small files it is remembered what was said.
MAX_REPORTS = 64


class ValidationStopped(Exception):
    """The validator was closed before it knew."""


class _NotValidated(Exception):
    """The file could not be read to its end; `error` is what the job says."""

    def __init__(self, error: JobError) -> None:
        self.error = error
        super().__init__(error.message)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a job cannot take its files, and the report of all that is wrong with them, where they could be read."""

    error: JobError
    report: dict[str, Any] | None


class Validator:
    """Reads the files of one job at a time; `close` may be called from any thread."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        #: What was said of small files, the newest last.
        self._reports: dict[tuple[str, str, tuple[Needed, ...]], Report] = {}

    def is_quick(self, job: Job) -> bool:
        """Whether all its files are read in place."""
        asked = _asked(job)
        try:
            for _, _, blob in _files(job):
                if (blob, *asked) in self._reports:
                    continue
                with self._storage.open(blob) as file:
                    if not _is_small(file):
                        return False
        except CaesuraError:  # told by `find_fault`
            pass
        return True

    def find_fault(self, job: Job) -> Fault | None:
        """Why the job cannot take its files; None if it can. Raises ValidationStopped."""
        first_error: JobError | None = None
        files: list[dict[str, Any]] = []
        for param, file_id, blob in _files(job):
            try:
                report = self._report(blob, *_asked(job), param, file_id)
            except _NotValidated as failure:
                return Fault(failure.error, None)
            except CaesuraError as failure:
                logger.exception("a file of a job cannot be read")
                return Fault(JobError("server_error", f"The file cannot be read: {failure.message}", param), None)
            error = report.error(param, file_id)
            first_error = first_error or error
            files.append(file_to_json(file_id, param, report, error, None))
        if first_error is None:
            return None
        return Fault(first_error, to_json(job.method["type"], job.base, None, files))

    def close(self) -> None:
        """End what is under way, which raises ValidationStopped, and begin nothing more."""
        with self._lock:
            self._is_closed = True
            if self._child is not None:
                self._child.kill()

    def _report(self, blob: str, method: str, needed: tuple[Needed, ...], param: str, file_id: str) -> Report:
        # A blob never changes: what was said of one a moment ago still holds.
        report = self._reports.pop((blob, method, needed), None)
        if report is None:
            with self._storage.open(blob) as file:
                if not _is_small(file):
                    return self._ask(file, method, needed, param, file_id)
                report = validate(file, method, needed)
        self._reports[blob, method, needed] = report
        while len(self._reports) > MAX_REPORTS:
            del self._reports[next(iter(self._reports))]
        return report

    def _ask(self, file: BinaryIO, method: str, needed: Sequence[Needed], param: str, file_id: str) -> Report:
        request = {
            "descriptor": file.fileno(),
            "method": method,
            "needed": [[path.steps, path.text] for path in needed],
        }
        child = self._start(file.fileno())
        assert child.stdin is not None
        assert child.stdout is not None
        with child:
            with suppress(BrokenPipeError):  # it has died already: told below
                child.stdin.write(json.dumps(request).encode() + b"\n")
            reply = child.stdout.read()
            child.wait()
        with self._lock:
            self._child = None
            if self._is_closed:
                raise ValidationStopped
        if child.returncode != 0:
            cause = describe_exit(child.returncode)
            logger.error("the process that validated file %s ended: %s", file_id, cause)
            raise _NotValidated(_crashed(param, cause))
        return Report.from_json(json.loads(reply))

    def _start(self, descriptor: int) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_closed:
                raise ValidationStopped
            self._child = subprocess.Popen(
                [sys.executable, "-m", "caesura.validation"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(descriptor,),
                bufsize=0,  # what it died before reading would be flushed, and fail, once more when the pipe is closed
                start_new_session=True,  # Ctrl-C is for the server, which ends this process
            )
            return self._child


def _crashed(param: str, cause: str) -> JobError:
    return JobError(
        "server_error",
        f"The {param.replace('_', ' ')} was not validated: the process that reads it ended ({cause}). Create the job "
        "again. If that ends the same way, check the file with 'caesura check', and whether the server's machine has "
        "memory left: a line is read as a whole, so a very long one needs much.",
        param,
    )


def _files(job: Job) -> list[tuple[str, str, str]]:
    """For each file of the job, the parameter that names it, its id and its blob."""
    files = [("training_file", job.training_file, job.training_blob)]
    if job.validation_file is not None and job.validation_blob is not None:
        files.append(("validation_file", job.validation_file, job.validation_blob))
    return files


def _is_small(file: BinaryIO) -> bool:
    return os.fstat(file.fileno()).st_size <= IN_PLACE_BYTES


def _asked(job: Job) -> tuple[str, tuple[Needed, ...]]:
    """The method that its files must serve, and what the method needs of their lines."""
    method: str = job.method["type"]
    return method, tuple(needed_by(job.method[method]["grader"])) if method == "reinforcement" else ()


def main() -> None:
    request = read_request()
    needed = [Needed(tuple(steps), text) for steps, text in request["needed"]]
    with open(request["descriptor"], "rb") as file:
        report = validate(file, request["method"], needed)
    sys.stdout.write(json.dumps(asdict(report)))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
