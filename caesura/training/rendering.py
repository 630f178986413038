"""The rows of a job's files as the base model sees them, and what the user should know of them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from caesura.data.lines import Problem
from caesura.data.render import Tokenizer, pin_date
from caesura.data.rows import TextRow
from caesura.data.tally import LACKING, AnyRow, Lines, Tally, file_to_json, to_json, try_to_render
from caesura.data.validate import FORMATS, MAX_PROBLEMS, Report
from caesura.errors import InvalidData, InvalidRequest
from caesura.jobs import Job, JobError
from caesura.models.loading import Base, ChatTokenizer
from caesura.training.rows import Rendered

R = TypeVar("R", bound=Rendered)


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known of a job's files once they are rendered, or could not be."""

    #: The machine-readable report.
    report: dict[str, Any]
    #: What each file holds, in words.
    counts: list[str] = field(default_factory=list[str])
    #: What the user should know.
    warnings: list[str] = field(default_factory=list[str])


class InvalidRows(InvalidData):
    """Rows that the base model's template does not take, or that teach nothing; `report` has all that is known."""

    def __init__(self, error: JobError, report: dict[str, Any]) -> None:
        super().__init__(error.message, param=error.param, code=error.code)
        self.report = report


@dataclass(frozen=True, slots=True)
class Renderer(Generic[R]):
    """`render` makes a row of at most so many tokens."""

    job: Job
    base: Base
    render: Callable[[Any, Tokenizer, int], R]

    def files(self, training: Sequence[AnyRow], validation: Sequence[AnyRow]) -> tuple[list[R], list[R], Findings]:
        """The rows of both files, and what is to be said of them.

        Raises InvalidRows, naming the lines, when rows cannot be rendered, or no row of the training file teaches
        anything.
        """
        rendered, reports, tallies = list[list[R]](), list[dict[str, Any]](), list[Tally]()
        first_error: JobError | None = None
        for param, file_id, rows in (
            ("training_file", self.job.training_file, training),
            ("validation_file", self.job.validation_file, validation),
        ):
            tally, problems = Tally(), list[Problem]()
            rendered.append(self._render(rows, tally, problems, tallies[0].digests if tallies else ()))
            tallies.append(tally)
            if file_id is None:
                continue
            report = self._report(len(rows), problems)
            error = report.error(param, file_id) if problems else None
            if param == "training_file" and not problems and tally.silent.num_rows == len(rows):
                error = as_job_error(nothing_to_learn(LACKING[self._method], self.base.context_window))
            first_error = first_error or error
            reports.append(file_to_json(file_id, param, report, error, None if error else tally))
        told = to_json(self._method, self.base.name, self.base.context_window, reports)
        if first_error is not None:
            raise InvalidRows(first_error, told)
        return rendered[0], rendered[1], self._findings(told, *tallies)

    @property
    def _method(self) -> str:
        return self.job.method["type"]

    def _render(
        self, rows: Sequence[AnyRow], tally: Tally, problems: list[Problem], others: Container[bytes]
    ) -> list[R]:
        rendered: list[R] = []
        for row in rows:
            item = try_to_render(row, self.render, self.base.tokenizer, self.base.context_window)
            if isinstance(item, Problem):
                problems.append(item)
            else:
                rendered.append(item)
                tally.add(row, item, others)
        return rendered

    def _report(self, num_rows: int, problems: list[Problem]) -> Report:
        expected = FORMATS[self._method]
        return Report(expected, expected, num_rows - len(problems), problems[:MAX_PROBLEMS], len(problems))

    def _findings(self, report: dict[str, Any], training: Tally, validation: Tally) -> Findings:
        findings = Findings(report)
        for name, tally in (("training", training), ("validation", validation)):
            if tally.lengths:
                findings.counts.append(f"The {name} file has {tally.describe(self._method)}")
                findings.warnings.extend(self._warnings(name, tally))
        return findings

    def _warnings(self, name: str, tally: Tally) -> list[str]:
        context = f"the context of {self.base.context_window} tokens"
        told: list[tuple[Lines, str]] = [
            (tally.cut, f"are longer than {context} and were truncated at the end"),
            (tally.silent, f"have {LACKING[self._method]} within {context} and teach nothing"),
            (tally.unasked, "have no message of the user"),
            (tally.without_system, "have no system message, and most of its rows have one"),
            (tally.repeated, "repeat an earlier one"),
            (
                tally.shared,
                "stand in the training file as well: what is measured on them is not what the model makes of new ones",
            ),
        ]
        return [
            f"{lines.num_rows} row(s) of the {name} file {what}: {lines.describe()}"
            for lines, what in told
            if lines.num_rows
        ]


def prepare_tokenizer(tokenizer: ChatTokenizer, now: datetime) -> None:
    """Have its chat templates print the date of `now`, always."""
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        tokenizer.chat_template = {name: pin_date(template, now) for name, template in templates.items()}
    elif templates is not None:
        tokenizer.chat_template = pin_date(templates, now)


def require_template(base: str, tokenizer: ChatTokenizer, rows: Iterable[object]) -> None:
    """Raises InvalidRequest where the tokenizer has no chat template, and a row is a conversation."""
    if not tokenizer.chat_template and not all(isinstance(row, TextRow) for row in rows):
        raise InvalidRequest(
            f"The base model '{base}' has no chat template, so conversations cannot be rendered for it. Use a chat "
            "model, put a 'chat_template.jinja' beside its weights, or write the rows as prompt/completion pairs.",
            param="model",
            code="unsupported_model",
        )


def nothing_to_learn(lacking: str, context_window: int) -> InvalidData:
    """Why a job cannot be trained when none of its rows teaches anything."""
    return InvalidData(
        f"Every row of the training file has {lacking} within the context of {context_window} tokens. Shorten the "
        "prompts, or use a base model with a longer context.",
        param="training_file",
        code="invalid_training_file",
    )


def as_job_error(error: InvalidRequest | InvalidData) -> JobError:
    return JobError(error.code or "server_error", error.message, error.param)
