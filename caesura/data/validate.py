"""Is a data file fit to train on: fully, inside the job (`validate`), and at a glance, at upload (`check_upload`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from caesura.data.rows import Problem, load_line, parse_rows
from caesura.errors import InvalidData
from caesura.jobs import JobError

#: A training file needs this many rows; a validation file needs one.
MIN_ROWS = 10
#: A report keeps this many problems; the others are only counted.
MAX_PROBLEMS = 100
#: The message of a failed job names this many problems.
NUM_TOLD_PROBLEMS = 5
#: `check_upload` takes this many bytes of a file's beginning.
HEAD_BYTES = 64 * 1024

_NOT_JSONL = "Invalid file format. Expected file to have JSONL format, where every line is a JSON dictionary."
_NUM_HINT_CHARACTERS = 20


@dataclass(frozen=True, slots=True)
class Report:
    """What a file holds: `num_rows` valid rows, and `num_problems` faulty lines, told of in `problems`.

    `problems` has at most `MAX_PROBLEMS` of them, the first ones.
    """

    num_rows: int
    problems: list[Problem]
    num_problems: int

    def error(self, param: str) -> JobError | None:
        """Why a job cannot take the file as its `param` ("training_file" or "validation_file"); None if it can.

        A fault of format is told before a lack of rows.
        """
        if self.problems:
            return JobError(f"invalid_{param}", self._told_problems(param), param)
        kind, needed = ("Training", MIN_ROWS) if param == "training_file" else ("Validation", 1)
        if self.num_rows < needed:
            examples = "example" if needed == 1 else "examples"
            message = f"{kind} file has {self.num_rows} example(s), but must have at least {needed} {examples}"
            return JobError("invalid_n_examples", message, param)
        return None

    def _told_problems(self, param: str) -> str:
        file = param.replace("_", " ")
        told = [_sentence(problem.message) for problem in self.problems[:NUM_TOLD_PROBLEMS]]
        num_others = self.num_problems - len(told)
        others = [f"{num_others} more line(s) are faulty."] if num_others else []
        start = f"The job failed due to an invalid {file}. Invalid file format."
        return " ".join([start, *told, *others, f"To mend the first: {self.problems[0].remedy}"])


def validate(lines: Iterable[bytes]) -> Report:
    """Read all lines of a supervised file, in memory that does not grow with it."""
    num_rows = num_problems = 0
    problems: list[Problem] = []
    for item in parse_rows(lines):
        if not isinstance(item, Problem):
            num_rows += 1
            continue
        num_problems += 1
        if num_problems <= MAX_PROBLEMS:
            problems.append(item)
    return Report(num_rows, problems, num_problems)


def check_upload(head: bytes) -> str | None:
    """Why a file that begins with `head` can hold no rows of any training method; None if it may.

    `head` is the file's first `HEAD_BYTES` bytes, or all of it where it is shorter. Only the first line that is
    not blank is judged, and not where it is cut: `validate` tells the rest, with line numbers and remedies.
    """
    is_cut = len(head) >= HEAD_BYTES
    lines = head.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if is_cut and number == len(lines):
            return None
        if line.strip():
            return None if _is_dictionary(line) else _not_a_dictionary(number, line)
    return f"{_NOT_JSONL} The file is empty."


def _is_dictionary(line: bytes) -> bool:
    try:
        return isinstance(load_line(line), dict)
    except InvalidData:
        return False


def _not_a_dictionary(number: int, line: bytes) -> str:
    hint = line.strip().decode("utf-8", errors="replace")[:_NUM_HINT_CHARACTERS]
    return f'{_NOT_JSONL} Line {number} is not a dictionary (HINT: line starts with: "{hint}…").'


def _sentence(text: str) -> str:
    return text if text.endswith(".") else text + "."
