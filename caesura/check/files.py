"""What is found of a data file: its faults, its tokens, its repeated rows."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from caesura.data.lines import Problem, parse_lines
from caesura.data.order import num_steps
from caesura.data.pairs import Pair, render_pair
from caesura.data.preferences import PreferenceRow
from caesura.data.prompt_tokens import PromptTokens, render_prompt
from caesura.data.prompts import Needed, PromptRow
from caesura.data.render import Example, Tokenizer
from caesura.data.rows import Row, TextRow
from caesura.data.texts import render_example
from caesura.data.validate import FORMATS, MAX_PROBLEMS, Report, line_reader, validate
from caesura.errors import InvalidData
from caesura.jobs import JobError
from caesura.models.loading import ChatTokenizer
from caesura.training.hyperparameters import Hyperparameters, resolve
from caesura.training.rendering import LACKING, nothing_to_learn, require_template

#: Of rows that something is said of, so many lines are named.
MAX_LINES = 20
_DIGEST_BYTES = 8

AnyRow = Row | TextRow | PreferenceRow | PromptRow
_Render = Callable[[Any, Tokenizer, int], Example | Pair | PromptTokens]
#: As a worker renders the rows of each method.
_RENDERERS: dict[str, _Render] = {
    "supervised": render_example,
    "dpo": render_pair,
    "reinforcement": render_prompt,
}


class Base(NamedTuple):
    """Of a base model, what rows need to become tokens."""

    name: str
    tokenizer: ChatTokenizer
    context_window: int


@dataclass(slots=True)
class Lines:
    """How many rows something is true of, and the lines of the first."""

    num_rows: int = 0
    first: list[int] = field(default_factory=list[int])

    def add(self, line: int) -> None:
        self.num_rows += 1
        if self.num_rows <= MAX_LINES:
            self.first.append(line)


@dataclass(slots=True)
class Tally:
    """The rows of a good file as a worker sees them."""

    lengths: array[int] = field(default_factory=lambda: array("Q"))
    #: Tokens that are learned or compared; of prompts there are none.
    num_learned: int = 0
    cut: Lines = field(default_factory=Lines)
    silent: Lines = field(default_factory=Lines)
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


@dataclass(frozen=True, slots=True)
class Checked:
    """A file. `error` is what a job would fail with; `tally` is None where there is one."""

    path: Path
    #: "training_file" or "validation_file".
    param: str
    report: Report
    error: JobError | None
    tally: Tally | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What `auto` resolves to for the training file."""

    hyperparameters: Hyperparameters
    num_steps: int
    #: As a job tells them at its end; None where answers are sampled, and nobody knows how long they get.
    trained_tokens: int | None


def read(path: Path, param: str, method: str, needed: Sequence[Needed]) -> Checked:
    """Validate the file, as a job does, in memory that does not grow with it. Raises OSError."""
    with path.open("rb") as lines:
        report = validate(lines, method, needed)
    return Checked(path, param, report, report.error(param, f"'{path.name}'"))


def count(
    checked: Checked,
    method: str,
    needed: Sequence[Needed],
    base: Base,
    others: Container[bytes] = (),
    watch: Callable[[Iterable[bytes]], Iterable[bytes]] = iter,
) -> Checked:
    """The good file with its tally, or with the rows that cannot be rendered. `others`: the digests of the other file's
    rows. `watch` sees the lines go by. Raises OSError, and InvalidRequest where the base has no chat template.
    """
    tally, problems, num_problems = Tally(), list[Problem](), 0
    expected, render = FORMATS[method], _RENDERERS[method]
    with checked.path.open("rb") as lines:
        for row in parse_lines(watch(lines), expected, line_reader(method, needed)):
            if not isinstance(row, Problem):
                require_template(base.name, base.tokenizer, [row])
            problem = row if isinstance(row, Problem) else _render(row, render, base, tally, others)
            num_problems += problem is not None
            if problem is not None and num_problems <= MAX_PROBLEMS:
                problems.append(problem)
    report = checked.report
    if num_problems:
        report = Report(expected, expected, report.num_rows - num_problems, problems, num_problems)
        return replace(checked, report=report, error=report.error(checked.param, f"'{checked.path.name}'"))
    if checked.param == "training_file" and tally.silent.num_rows == report.num_rows:
        error = nothing_to_learn(LACKING[method], base.context_window)
        return replace(checked, error=JobError("invalid_training_file", error.message, checked.param))
    return replace(checked, tally=tally)


def estimate(num_rows: int, tally: Tally, method: str) -> Estimate:
    """By the functions that a worker plans with."""
    resolved = resolve({}, num_rows, method)
    trained_tokens = None if method == "reinforcement" else tally.num_tokens * resolved.n_epochs
    return Estimate(resolved, num_steps(num_rows, resolved.batch_size, resolved.n_epochs), trained_tokens)


def _render(row: AnyRow, render: _Render, base: Base, tally: Tally, others: Container[bytes]) -> Problem | None:
    """Add the row to the tally. What the base's template does not take is a problem."""
    try:
        rendered = render(row, base.tokenizer, base.context_window)
    except InvalidData as error:
        return Problem(row.line, error.message, "Change the row, or use another base model.", None, None)
    tally.lengths.append(rendered.num_tokens)
    tally.num_learned += _num_learned(rendered)
    if rendered.num_truncated:
        tally.cut.add(row.line)
    if not rendered.teaches:
        tally.silent.add(row.line)
    digest = _digest(row)
    if digest in tally.digests:
        tally.repeated.add(row.line)
    if digest in others:
        tally.shared.add(row.line)
    tally.digests.add(digest)
    return None


def _num_learned(rendered: Example | Pair | PromptTokens) -> int:
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
