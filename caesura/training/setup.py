"""From a job's row and files to a trainer that stands at a training state."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import torch
from torch import nn

from caesura.data.lines import Problem
from caesura.data.pairs import render_pair
from caesura.data.preferences import parse_preferences
from caesura.data.prompt_tokens import PromptTokens, render_prompt
from caesura.data.prompts import PromptRow, parse_prompts
from caesura.data.render import Tokenizer
from caesura.data.rows import parse_rows
from caesura.data.tally import AnyRow
from caesura.data.texts import render_example
from caesura.errors import InvalidData, InvalidRequest
from caesura.graders.tool_servers import ToolServers
from caesura.inference.grammar import build_constraint
from caesura.inference.sampler import LocalSampling, Sampling
from caesura.inference.tools import find_format
from caesura.jobs import Job
from caesura.models.decoding import build_decoder
from caesura.models.digest import digest_weights
from caesura.models.loading import Base, LoadBase, load_base, load_quantized_base, tool_template
from caesura.models.lora import Adapter, add_lora
from caesura.models.segments import takes_segments
from caesura.models.tuned import Tuned
from caesura.schema.adapters import FULL
from caesura.settings import BaseModelSettings
from caesura.training.collector import Collector
from caesura.training.grading import Grading
from caesura.training.method import Method
from caesura.training.plan import Plan
from caesura.training.policy import HttpTools, Policy
from caesura.training.preference import Preference
from caesura.training.reference import Reference
from caesura.training.reinforcement import Reinforcement
from caesura.training.rendering import Findings, Renderer, prepare_tokenizer, require_template
from caesura.training.rows import Rendered, Rows
from caesura.training.supervised import Supervised
from caesura.training.trained import Trained, TrainedAdapter, TrainedModel

#: Turns of an answer that may call tools, where the job does not say.
DEFAULT_EPISODE_STEPS = 10
R = TypeVar("R", bound=Rendered)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a method that samples and grades needs of the process that it runs in."""

    grading: Grading
    #: Called often in the middle of a step; raises StepInterrupted when that is to be left.
    watch: Callable[[], None]
    tool_servers: ToolServers | None = None
    #: Where answers are sampled; None: here, from a second copy of the base.
    sampling: Sampling[Any] | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a trainer needs beside its state."""

    base: Base
    trained: Trained
    method: Method
    findings: Findings


PARSERS: dict[str, Callable[[Iterable[bytes]], Iterable[AnyRow | Problem]]] = {
    "supervised": parse_rows,
    "dpo": parse_preferences,
    "reinforcement": parse_prompts,
}


def read_rows(lines: Iterable[bytes], method: str) -> list[AnyRow]:
    """The rows of a file that was found valid for the method. Raises InvalidData when it is not any more."""
    rows: list[AnyRow] = []
    for row in PARSERS[method](lines):
        if isinstance(row, Problem):
            raise InvalidData(row.message)
        rows.append(row)
    return rows


def set_up(
    job: Job,
    settings: BaseModelSettings,
    plan: Plan,
    training: Sequence[AnyRow],
    validation: Sequence[AnyRow],
    start: Tuned | None = None,
    surroundings: Surroundings | None = None,
    load: LoadBase | None = None,
) -> Setup:
    """Load the base model in the plan's arithmetic, make it ready to be trained and render the rows, as `read_rows`
    gave them.

    `start` is what the training goes on from, for DPO and reinforcement an adapter; `load` loads the base where it is
    not `load_base`. Raises InvalidRequest when the base cannot be loaded or used, InvalidData when no row teaches
    anything.
    """
    torch.set_num_threads(plan.threads)
    torch.use_deterministic_algorithms(True)
    # It would also fill what is allocated, lest someone read it before writing it: 5 % of a step, and nobody does.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    base = _load(job, settings, plan, load)
    require_template(base.name, base.tokenizer, [*training, *validation])
    files = _Files(job, base, plan, training, validation)
    if plan.adapter_type == FULL:
        return _set_up_full(files, settings)
    assert start is None or isinstance(start, Adapter)
    if job.method["type"] == "dpo":
        return _set_up_preference(files, start)
    if job.method["type"] == "reinforcement":
        assert surroundings is not None
        sampling = surroundings.sampling or _sample_here(_load(job, settings, plan, load), plan)
        policy = _build_policy(base, sampling, plan, job.method["reinforcement"], surroundings)
        return _set_up_reinforcement(files, start, policy, surroundings)
    return _set_up_supervised(files)


@dataclass(frozen=True, slots=True)
class _Files:
    """The rows of a job, and what they are rendered for."""

    job: Job
    base: Base
    plan: Plan
    training: Sequence[AnyRow]
    validation: Sequence[AnyRow]

    def render(self, render: Callable[[Any, Tokenizer, int], R]) -> tuple[Rows[R], Findings]:
        rendered = Renderer(self.job, self.base, render).files(self.training, self.validation)
        training, validation, findings = rendered
        return Rows(training, validation, self.plan, self.job.seed), findings


def _set_up_supervised(files: _Files) -> Setup:
    base, plan = files.base, files.plan
    rows, findings = files.render(render_example)
    return Setup(
        base, TrainedAdapter(add_lora(base.model), plan), Supervised(rows, plan, takes_segments(base.model)), findings
    )


def _set_up_full(files: _Files, settings: BaseModelSettings) -> Setup:
    base, plan = files.base, files.plan
    assert files.job.method["type"] == "supervised"
    rows, findings = files.render(render_example)

    def load_exact() -> nn.Module:
        if plan.dtype == "float32":
            return base.model
        return load_base(base.name, settings, torch.float32, torch.device("cpu")).model

    return Setup(
        base, TrainedModel(base.model, load_exact), Supervised(rows, plan, takes_segments(base.model)), findings
    )


def _set_up_preference(files: _Files, start: Adapter | None) -> Setup:
    base, plan = files.base, files.plan
    rows, findings = files.render(render_pair)
    # A start that is kept frozen is in the layers: the reference is what they compute without an adapter.
    frozen, reference_adapter = (start, None) if plan.frozen_rank else (None, start)
    frozen_weights = [] if frozen is None else sorted(frozen.weights.items())
    base_digest = digest_weights([*base.model.named_parameters(), *frozen_weights])
    layers = add_lora(base.model)
    reference = Reference(layers, reference_adapter, [*rows.training, *rows.validation], base_digest)
    method = Preference(rows, plan, reference, takes_segments(base.model))
    return Setup(base, TrainedAdapter(layers, plan), method, findings)


def _set_up_reinforcement(
    files: _Files, start: Adapter | None, policy: Policy[Any], surroundings: Surroundings
) -> Setup:
    base, plan, job = files.base, files.plan, files.job
    assert plan.reasoning_effort is not None
    assert plan.sampled_together is not None
    default_format: dict[str, Any] | None = job.method["reinforcement"].get("response_format")
    checked: set[str] = set()

    def render(row: PromptRow, tokenizer: Tokenizer, max_tokens: int) -> PromptTokens:
        is_own = row.response_format is not None
        row = replace(row, response_format=row.response_format or default_format)
        if row.json_schema is not None:
            _check_schema(base, row, is_own, checked)
        return render_prompt(row, tokenizer, max_tokens, plan.reasoning_effort or "default")

    rows, findings = files.render(render)
    layers = add_lora(base.model)
    collector = Collector(policy, surroundings.grading, plan.sampled_together, surroundings.watch)
    method = Reinforcement(rows, plan, job.seed, layers, start, collector, takes_segments(base.model))
    return Setup(base, TrainedAdapter(layers, plan), method, findings)


def _check_schema(base: Base, row: PromptRow, is_own: bool, checked: set[str]) -> None:
    """Raises InvalidRequest where answers cannot be held to the row's schema, or to the job's. `checked`: those that
    were looked at before."""
    assert row.json_schema is not None
    text = json.dumps(row.json_schema)
    if text in checked:
        return
    checked.add(text)
    try:
        build_constraint(base, row.json_schema)
    except InvalidRequest as error:
        if is_own:
            raise InvalidData(f"Example {row.line}: {error.message}") from error
        raise InvalidRequest(error.message, param=f"method.reinforcement.{error.param}") from error


def _sample_here(base: Base, plan: Plan) -> LocalSampling:
    """`base` is a second one: a decoder packs the weights for itself."""
    assert plan.sampled_together is not None
    return LocalSampling(build_decoder(base.model), plan.sampled_together)


def _build_policy(
    base: Base, sampling: Sampling[Any], plan: Plan, method: dict[str, Any], surroundings: Surroundings
) -> Policy[Any]:
    assert plan.max_completion_tokens is not None
    servers = surroundings.tool_servers
    tools = None
    if servers is not None:
        tools = HttpTools(servers, method.get("max_episode_steps", DEFAULT_EPISODE_STEPS), surroundings.grading)
    tool_format = find_format(tool_template(base.tokenizer))
    return Policy(base, sampling, tool_format, plan.max_completion_tokens, tools)


def _load(job: Job, settings: BaseModelSettings, plan: Plan, load: LoadBase | None) -> Base:
    settings = settings.model_copy(update={"context_window": plan.context_window})
    if plan.adapter_type == "qlora":
        load = load_quantized_base
    base = (load or load_base)(job.base, settings, getattr(torch, plan.dtype), torch.device(plan.device))
    prepare_tokenizer(base.tokenizer, datetime.fromtimestamp(job.created_at, UTC))
    return base
