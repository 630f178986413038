"""What is found of a data file: its faults, its tokens, its repeated rows."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from caesura.data.lines import Problem, parse_lines
from caesura.data.order import num_steps
from caesura.data.pairs import render_pair
from caesura.data.prompt_tokens import render_prompt
from caesura.data.prompts import Needed
from caesura.data.render import Tokenizer
from caesura.data.tally import LACKING, AnyRendered, AnyRow, Tally, try_to_render
from caesura.data.texts import render_example
from caesura.data.validate import FORMATS, MAX_PROBLEMS, Report, line_reader, validate
from caesura.jobs import JobError
from caesura.models.loading import ChatTokenizer
from caesura.training.hyperparameters import Hyperparameters, resolve
from caesura.training.rendering import nothing_to_learn, require_template

#: As a worker renders the rows of each method.
_RENDERERS: dict[str, Callable[[Any, Tokenizer, int], AnyRendered]] = {
    "supervised": render_example,
    "dpo": render_pair,
    "reinforcement": render_prompt,
}


class Base(NamedTuple):
    """Of a base model, what rows need to become tokens."""

    name: str
    tokenizer: ChatTokenizer
    context_window: int


@dataclass(frozen=True, slots=True)
class Checked:
    """A file. `error` is what a job would fail with; `tally` is None where its rows were not counted."""

    path: Path
    #: "training_file" or "validation_file".
    param: str
    report: Report
    error: JobError | None
    tally: Tally | None = None

    @property
    def is_readable(self) -> bool:
        """Whether it has rows, all of them good ones: there may be too few."""
        report = self.report
        return report.num_rows > 0 and not report.problems and report.format.method == report.expected.method


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
    """The readable file with its tally, or with the rows that cannot be rendered.

    `others`: the digests of the other file's rows. `watch` sees the lines go by. Raises OSError; InvalidRequest
    where the base has no chat template.
    """
    tally, problems, num_problems = Tally(), list[Problem](), 0
    expected, render = FORMATS[method], _RENDERERS[method]
    with checked.path.open("rb") as lines:
        for row in parse_lines(watch(lines), expected, line_reader(method, needed)):
            if isinstance(row, Problem):
                problem: Problem | None = row
            else:
                require_template(base.name, base.tokenizer, [row])
                problem = _count(row, render, base, tally, others)
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


def _count(
    row: AnyRow,
    render: Callable[[Any, Tokenizer, int], AnyRendered],
    base: Base,
    tally: Tally,
    others: Container[bytes],
) -> Problem | None:
    """Add the row to the tally. What the base's template does not take is a problem."""
    rendered = try_to_render(row, render, base.tokenizer, base.context_window)
    if isinstance(rendered, Problem):
        return rendered
    tally.add(row, rendered, others)
    return None
