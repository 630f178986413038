"""What a data file holds as tokens, and the report of it that users and programs read. No I/O."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from caesura.data.lines import Problem
from caesura.data.pairs import Pair
from caesura.data.preferences import PreferenceRow
from caesura.data.prompt_tokens import PromptTokens
from caesura.data.prompts import PromptRow
from caesura.data.render import Example, Tokenizer
from caesura.data.rows import Row, TextRow
from caesura.data.validate import Report
from caesura.errors import InvalidData
from caesura.jobs import JobError

#: Of rows that something is said of, so many lines are named.
MAX_LINES = 20
_DIGEST_BYTES = 8

AnyRow = Row | TextRow | PreferenceRow | PromptRow
AnyRendered = Example | Pair | PromptTokens
#: What a row is called, by method.
UNITS = {"supervised": "row", "dpo": "pair", "reinforcement": "prompt"}
#: What a row that teaches nothing has.
LACKING = {
    "supervised": "no assistant token",
    "dpo": "nothing to compare",
    "reinforcement": "no room for an answer",
}
_LEARNED = {"supervised": ", of which {:,} are learned", "dpo": ", of which {:,} are compared", "reinforcement": ""}


@dataclass(slots=True)
class Lines:
    """How many rows something is true of, and the lines of the first."""

    num_rows: int = 0
    first: list[int] = field(default_factory=list[int])

    def add(self, line: int) -> None:
        self.num_rows += 1
        if self.num_rows <= MAX_LINES:
            self.first.append(line)

    def describe(self) -> str:
        num_others = self.num_rows - len(self.first)
        more = f" and {num_others:,} more" if num_others else ""
        return f"lines {', '.join(map(str, self.first))}{more}"


@dataclass(slots=True)
class Tally:
    """The rows of a file as a worker sees them."""

    lengths: array[int] = field(default_factory=lambda: array("Q"))
    #: Tokens that are learned or compared; of prompts there are none.
    num_learned: int = 0
    cut: Lines = field(default_factory=Lines)
    silent: Lines = field(default_factory=Lines)
    #: Conversations in which the user says nothing.
    unasked: Lines = field(default_factory=Lines)
    #: Conversations that no message of the system, or of the developer, leads; and how many one does.
    unled: Lines = field(default_factory=Lines)
    num_led: int = 0
    #: Rows that stand in the file before.
    repeated: Lines = field(default_factory=Lines)
    #: Rows that stand in the training file as well.
    shared: Lines = field(default_factory=Lines)
    digests: set[bytes] = field(default_factory=set[bytes])

    @property
    def num_tokens(self) -> int:
        """As truncated."""
        return sum(self.lengths)

    @property
    def spread(self) -> tuple[int, float, int]:
        """Tokens of the shortest row, of the one in the middle, of the longest."""
        return min(self.lengths), median(self.lengths), max(self.lengths)

    def add(self, row: AnyRow, rendered: AnyRendered, others: Container[bytes] = ()) -> None:
        """`others`: the digests of the other file's rows."""
        self.lengths.append(rendered.num_tokens)
        self.num_learned += _num_learned(rendered)
        if rendered.num_truncated:
            self.cut.add(row.line)
        if not rendered.teaches:
            self.silent.add(row.line)
        if isinstance(row, Row):
            self._add_roles(row.line, {message["role"] for message in row.messages})
        digest = _digest(row)
        if digest in self.digests:
            self.repeated.add(row.line)
        if digest in others:
            self.shared.add(row.line)
        self.digests.add(digest)

    def _add_roles(self, line: int, roles: set[str]) -> None:
        if "user" not in roles:
            self.unasked.add(line)
        if roles & {"system", "developer"}:
            self.num_led += 1
        else:
            self.unled.add(line)

    @property
    def without_system(self) -> Lines:
        """Rows without a system message where most have one; elsewhere that is nothing to speak of."""
        return self.unled if self.num_led > self.unled.num_rows else Lines()

    def describe(self, method: str) -> str:
        """Its tokens, in a sentence."""
        low, middle, high = self.spread
        learned = _LEARNED[method].format(self.num_learned)
        lengths = f"a {UNITS[method]} has {low:,} to {high:,}, {middle:,.0f} at the median"
        return f"{self.num_tokens:,} tokens{learned}; {lengths}"

    def to_json(self) -> dict[str, Any]:
        low, middle, high = self.spread
        tokens = {"total": self.num_tokens, "learned": self.num_learned, "min": low, "median": middle, "max": high}
        named = {"cut": self.cut, "teach_nothing": self.silent, "without_user": self.unasked}
        named |= {"without_system": self.without_system, "repeated": self.repeated, "in_training_file": self.shared}
        return {
            "tokens": tokens,
            **{name: {"rows": lines.num_rows, "lines": lines.first} for name, lines in named.items()},
        }


def try_to_render(
    row: AnyRow, render: Callable[[Any, Tokenizer, int], Any], tokenizer: Tokenizer, max_tokens: int
) -> Any:
    """What `render` makes of the row; a Problem where the base's template does not take it."""
    try:
        return render(row, tokenizer, max_tokens)
    except InvalidData as error:
        return Problem(row.line, error.message, "Change the row, or use another base model.", None, None)


def file_to_json(name: str, param: str, report: Report, error: JobError | None, tally: Tally | None) -> dict[str, Any]:
    """What is known of one file. `name` is its id, or its path; `param` the parameter of a job that names it."""
    return {
        "file": name,
        "param": param,
        "rows": report.num_rows,
        "error": None if error is None else {"code": error.code, "message": error.message},
        "problems": [
            {"line": problem.line, "field": problem.field, "message": problem.message, "remedy": problem.remedy}
            for problem in report.problems
        ],
        "num_problems": report.num_problems,
        **({"tokens": None} if tally is None else tally.to_json()),
    }


def to_json(method: str, model: str, context_window: int | None, files: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The report of a job's files. `context_window` is None where nobody has asked the model for it."""
    return {
        "ok": all(file["error"] is None for file in files),
        "method": method,
        "model": model,
        "context_window": context_window,
        "files": list(files),
    }


def _num_learned(rendered: AnyRendered) -> int:
    if isinstance(rendered, PromptTokens):
        return 0
    sides = rendered.sides if isinstance(rendered, Pair) else (rendered,)
    return sum(side.num_loss_tokens for side in sides)


def _digest(row: AnyRow) -> bytes:
    """Of all that the row holds, whatever the order of its keys."""
    if isinstance(row, PromptRow):
        content: Any = row.item
    elif isinstance(row, TextRow):
        content = [row.prompt, row.completion]
    elif isinstance(row, PreferenceRow):
        content = [row.messages, row.preferred, row.non_preferred, row.tools]
    else:
        content = [row.messages, row.tools]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=_DIGEST_BYTES).digest()
