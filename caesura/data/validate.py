"""Is a data file fit to train on: fully, inside the job (`validate`), and at a glance, at upload (`check_upload`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from caesura.data.lines import CHAT, PREFERENCE, PROMPTS, Format, Place, Problem, load_line, read_line
from caesura.data.preferences import read_preference
from caesura.data.prompts import Needed, read_prompt
from caesura.data.quick import quick_check
from caesura.data.rows import read_example
from caesura.errors import InvalidData
from caesura.jobs import JobError

#: A training file needs this many rows; a validation file needs one.
MIN_ROWS = 10
#: OpenAI's limits for reinforcement: every row is answered many times, those for validation again and again.
MAX_PROMPTS = {"training_file": 50_000, "validation_file": 1_000}
#: A report keeps this many problems; the others are only counted.
MAX_PROBLEMS = 100
#: The message of a failed job names this many problems.
NUM_TOLD_PROBLEMS = 5
#: `check_upload` takes this many bytes of a file's beginning.
HEAD_BYTES = 64 * 1024

_NOT_JSONL = "Invalid file format. Expected file to have JSONL format, where every line is a JSON dictionary."
_NUM_HINT_CHARACTERS = 20


#: From each training method to the format of its files.
FORMATS = {"supervised": CHAT, "dpo": PREFERENCE, "reinforcement": PROMPTS}


@dataclass(frozen=True, slots=True)
class Report:
    """What a file holds: `num_rows` valid rows, and `num_problems` faulty lines, told of in `problems`.

    `problems` has at most `MAX_PROBLEMS` of them, the first ones. `format` is the file's, `expected` that of the job's
    method; where they differ, nothing of the file is counted.
    """

    expected: Format
    format: Format
    num_rows: int
    problems: list[Problem]
    num_problems: int

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The report that `asdict` made the value of."""
        formats = {name: Format(**value[name]) for name in ("expected", "format")}
        problems = [Problem.from_json(problem) for problem in value["problems"]]
        own: dict[str, Any] = {**value, **formats, "problems": problems}
        return cls(**own)

    def error(self, param: str, file_id: str) -> JobError | None:
        """Why a job cannot take the file as its `param` ("training_file" or "validation_file"); None if it can.

        A fault of format is told before a wrong number of rows.
        """
        if self.format.method != self.expected.method:
            return JobError(f"invalid_{param}", self._told_format(param, file_id), param)
        if self.problems:
            return JobError(f"invalid_{param}", self._told_problems(param), param)
        kind, needed = ("Training", MIN_ROWS) if param == "training_file" else ("Validation", 1)
        if self.num_rows < needed:
            examples = "example" if needed == 1 else "examples"
            message = f"{kind} file has {self.num_rows} example(s), but must have at least {needed} {examples}"
            return JobError("invalid_n_examples", message, param)
        if self.expected == PROMPTS and self.num_rows > MAX_PROMPTS[param]:
            message = f"{kind} file has {self.num_rows} example(s), but must have at most {MAX_PROMPTS[param]} examples"
            return JobError("invalid_n_examples", message, param)
        return None

    def _told_format(self, param: str, file_id: str) -> str:
        return (
            f"{_start(param)} Input file {file_id} is in the {self.format.name} format, but the specified fine-tuning"
            f" job is not using '{self.format.method}' as the training method (provided method={self.expected.method})."
            f" Create the job with the method '{self.format.method}', or with a file whose lines are"
            f" {self.expected.example}."
        )

    def _told_problems(self, param: str) -> str:
        told = [as_sentence(problem.message) for problem in self.problems[:NUM_TOLD_PROBLEMS]]
        num_others = self.num_problems - len(told)
        others = [f"{num_others} more line(s) are faulty."] if num_others else []
        remedy = f"To mend the first: {self.problems[0].remedy}"
        return " ".join([_start(param), "Invalid file format.", *told, *others, remedy])


def validate(lines: Iterable[bytes], method: str, needed: Sequence[Needed] = ()) -> Report:
    """Read all lines of a file for the training method, in memory that does not grow with it.

    `needed`: what every row must have besides, as its grader names it (reinforcement alone).

    The first line whose format can be told has the file's; where that is another method's, no more is read.

    A line that is clearly good is only counted (`quick.py`); every other one is read in full.
    """
    expected, read, is_good = FORMATS[method], line_reader(method, needed), quick_check(method, needed)
    file_format: Format | None = None
    num_rows = num_problems = 0
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        if is_good(line):
            file_format = expected
            num_rows += 1
            continue
        item = read_line(number, line, expected, read)
        if item is None:
            continue
        if file_format is None:
            file_format = item.format if isinstance(item, Problem) else expected
            if file_format is not None and file_format.method != expected.method:
                return Report(expected, file_format, 0, [], 0)
        if not isinstance(item, Problem):
            num_rows += 1
            continue
        num_problems += 1
        if num_problems <= MAX_PROBLEMS:
            problems.append(item)
    return Report(expected, expected, num_rows, problems, num_problems)


def line_reader(method: str, needed: Sequence[Needed] = ()) -> Callable[[dict[str, Any], Place], Any]:
    """What makes a row of a line's object, for `parse_lines`."""
    if method == "reinforcement":
        return partial(read_prompt, needed=needed)
    return read_preference if method == "dpo" else read_example


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


def _start(param: str) -> str:
    return f"The job failed due to an invalid {param.replace('_', ' ')}."


def as_sentence(text: str) -> str:
    """A problem's message with a full stop."""
    return text if text.endswith(".") else text + "."
