"""The rows of a job's files as the base model sees them, and what the user should know of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from caesura.data.render import Tokenizer, pin_date
from caesura.data.rows import TextRow
from caesura.errors import InvalidData, InvalidRequest
from caesura.models.loading import Base, ChatTokenizer
from caesura.training.rows import Rendered

T = TypeVar("T")
R = TypeVar("R", bound=Rendered)
#: A warning names this many lines.
NUM_NAMED_LINES = 20


#: What a row that teaches nothing has, by method.
LACKING = {
    "supervised": "no assistant token",
    "dpo": "nothing to compare",
    "reinforcement": "no room for an answer",
}


@dataclass(frozen=True, slots=True)
class Renderer(Generic[T, R]):
    """`render` makes a row of at most so many tokens; `lacking` says what a row that teaches nothing has."""

    base: Base
    render: Callable[[T, Tokenizer, int], R]
    lacking: str
    #: Filled as files are rendered.
    warnings: list[str] = field(default_factory=list[str])

    def training(self, rows: Sequence[T]) -> list[R]:
        """Raises InvalidData, naming the line, when a row cannot be rendered, or when no row teaches anything."""
        rendered = self._render(rows, "training_file")
        if not any(row.teaches for row in rendered):
            raise nothing_to_learn(self.lacking, self.base.context_window)
        return rendered

    def validation(self, rows: Sequence[T]) -> list[R]:
        """Raises InvalidData, naming the line, when a row cannot be rendered."""
        return self._render(rows, "validation_file")

    def _render(self, rows: Sequence[T], param: str) -> list[R]:
        name = param.removesuffix("_file")
        context = f"the context of {self.base.context_window} tokens"
        try:
            rendered = [self.render(row, self.base.tokenizer, self.base.context_window) for row in rows]
        except InvalidData as error:
            message = f"The job failed due to an invalid {name} file. {error.message}"
            raise InvalidData(message, param=param, code=f"invalid_{param}") from error
        truncated = [row for row in rendered if row.num_truncated]
        if truncated:
            self.warnings.append(
                f"{len(truncated)} row(s) of the {name} file are longer than {context} and were truncated at the end: "
                f"{_lines(truncated)}"
            )
        silent = [row for row in rendered if not row.teaches]
        if silent:
            self.warnings.append(
                f"{len(silent)} row(s) of the {name} file have {self.lacking} within {context} and teach nothing: "
                f"{_lines(silent)}"
            )
        return rendered


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


def _lines(rows: Sequence[Rendered]) -> str:
    named = ", ".join(str(row.line) for row in rows[:NUM_NAMED_LINES])
    more = len(rows) - NUM_NAMED_LINES
    return f"lines {named}" + (f" and {more} more" if more > 0 else "")
