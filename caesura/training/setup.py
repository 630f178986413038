"""From a job's row and files to a trainer that stands at a training state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from caesura.data.render import Example, pin_date, render_row
from caesura.data.rows import Problem, Row, parse_rows
from caesura.errors import InvalidData, InvalidRequest
from caesura.jobs import Job
from caesura.models.loading import Base, ChatTokenizer, load_base
from caesura.models.lora import Layers, add_lora
from caesura.settings import BaseModelSettings
from caesura.training.plan import Plan
from caesura.training.supervised import Supervised

#: A warning names this many lines.
NUM_NAMED_LINES = 20


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a trainer needs beside its state."""

    base: Base
    layers: Layers
    method: Supervised
    #: Tokens of all training rows, as truncated; one epoch trains on so many.
    num_training_tokens: int
    #: What the user should know about the data.
    warnings: list[str]


def read_rows(lines: Iterable[bytes]) -> list[Row]:
    """The rows of a file that was found valid. Raises InvalidData when it is not any more."""
    rows: list[Row] = []
    for row in parse_rows(lines):
        if isinstance(row, Problem):
            raise InvalidData(row.message)
        rows.append(row)
    return rows


def set_up(job: Job, settings: BaseModelSettings, plan: Plan, training: list[Row], validation: list[Row]) -> Setup:
    """Load the base model in the plan's arithmetic, put adapters on it and render the rows.

    Raises InvalidRequest when the base cannot be loaded or used, InvalidData when no row teaches anything.
    """
    torch.set_num_threads(plan.threads)
    torch.use_deterministic_algorithms(True)
    # It would also fill what is allocated, lest someone read it before writing it: 5 % of a step, and nobody does.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    settings = settings.model_copy(update={"context_window": plan.context_window})
    base = load_base(job.base, settings, getattr(torch, plan.dtype), torch.device(plan.device))
    if not base.tokenizer.chat_template:
        raise InvalidRequest(
            f"The base model '{job.base}' has no chat template, so conversations cannot be rendered for it. Use a chat "
            "model, or put a 'chat_template.jinja' beside its weights.",
            param="model",
            code="unsupported_model",
        )
    layers = add_lora(base.model)
    warnings: list[str] = []
    _pin_date(base.tokenizer, datetime.fromtimestamp(job.created_at, UTC))
    training_examples = _render(base, training, "training_file", warnings)
    validation_examples = _render(base, validation, "validation_file", warnings)
    if not any(example.num_loss_tokens for example in training_examples):
        raise InvalidData(
            f"No row of the training file has an assistant token within the context of {base.context_window} tokens.",
            param="training_file",
        )
    method = Supervised(training_examples, validation_examples, plan, job.seed)
    num_tokens = sum(len(example.token_ids) for example in training_examples)
    return Setup(base, layers, method, num_tokens, warnings)


def _pin_date(tokenizer: ChatTokenizer, now: datetime) -> None:
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        tokenizer.chat_template = {name: pin_date(template, now) for name, template in templates.items()}
    elif templates is not None:
        tokenizer.chat_template = pin_date(templates, now)


def _render(base: Base, rows: list[Row], param: str, warnings: list[str]) -> list[Example]:
    name = param.removesuffix("_file")
    try:
        examples = [render_row(row, base.tokenizer, base.context_window) for row in rows]
    except InvalidData as error:
        message = f"The job failed due to an invalid {name} file. {error.message}"
        raise InvalidData(message, param=param, code=f"invalid_{param}") from error
    truncated = [example for example in examples if example.num_truncated]
    if truncated:
        warnings.append(
            f"{len(truncated)} row(s) of the {name} file are longer than the context of {base.context_window} tokens "
            f"and were truncated at the end: {_lines(truncated)}"
        )
    silent = [example for example in examples if not example.num_loss_tokens]
    if silent:
        warnings.append(
            f"{len(silent)} row(s) of the {name} file have no assistant token within the context of "
            f"{base.context_window} tokens and teach nothing: {_lines(silent)}"
        )
    return examples


def _lines(examples: list[Example]) -> str:
    named = ", ".join(str(example.line) for example in examples[:NUM_NAMED_LINES])
    more = len(examples) - NUM_NAMED_LINES
    return f"lines {named}" + (f" and {more} more" if more > 0 else "")
