"""Caesura's own step, for `benchmarks.gpu`: a module apart, since not every machine with a GPU has what it imports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from caesura.data.render import Example
from caesura.models.loading import Base
from caesura.models.lora import add_lora
from caesura.models.segments import takes_segments
from caesura.training.plan import Plan
from caesura.training.rows import Rows
from caesura.training.supervised import Supervised
from caesura.training.trained import TrainedAdapter, TrainedModel
from caesura.training.trainer import Trainer

#: Of the schedule, which no case comes to the end of.
MANY_STEPS = 100_000
LEARNING_RATE = 1e-5


def build_step(case: Any, build_model: Callable[..., Any], rows: Sequence[Any]) -> Callable[[], float]:
    """All rows in one step, again and again, by the trainer itself. `case` and `rows` are those of `benchmarks.gpu`."""
    examples = [
        Example(line, row.token_ids, [int(place >= row.first_learned) for place in range(row.num_tokens)], 0)
        for line, row in enumerate(rows, start=1)
    ]
    model = build_model(case.model, case.dtype, case.device)
    plan = make_plan(case, len(rows), model.config.max_position_embeddings)
    base = Base(case.model, model, tokenizer(), plan.context_window, model.num_parameters(), frozenset())
    trained = TrainedModel(model, lambda: model) if case.tuned == "full" else TrainedAdapter(add_lora(model), plan)
    method = Supervised(Rows(examples, [], plan, seed=1), plan, takes_segments(model))
    trainer = Trainer(base, trained, method, plan, trained.fresh_state(1))
    return lambda: trainer.step().metrics["train_loss"]


def make_plan(case: Any, num_rows: int, context_window: int) -> Plan:
    is_lora = case.tuned == "lora"
    return Plan(
        num_rows=num_rows,
        n_epochs=MANY_STEPS,
        batch_size=num_rows,
        learning_rate_multiplier=1.0,
        learning_rate=LEARNING_RATE,
        context_window=context_window,
        lora_rank=16 if is_lora else 0,
        lora_alpha=32.0 if is_lora else 0.0,
        micro_batch_tokens=case.pass_tokens,
        threads=torch.get_num_threads(),
        device=case.device,
        dtype=str(case.dtype).removeprefix("torch."),
        environment={},
        adapter_type=case.tuned,
    )


def tokenizer() -> Any:
    """The rows are tokens already."""
    return None
