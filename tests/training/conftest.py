from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caesura.data.rows import Row, parse_rows
from caesura.jobs import Job, Status
from caesura.settings import BaseModelSettings
from caesura.training.plan import Plan
from caesura.training.setup import Setup, set_up
from tests.world import EXAMPLES

MakeSetup = Callable[..., tuple[Setup, Plan]]


def example_rows(name: str) -> list[Row]:
    with (EXAMPLES / name).open("rb") as lines:
        rows = list(parse_rows(lines))
    assert all(isinstance(row, Row) for row in rows)
    return [row for row in rows if isinstance(row, Row)]


@pytest.fixture
def make_setup(micro_model: Path) -> MakeSetup:
    """A trainer's parts over the first example rows, and the micro model if no other is named."""

    def make(seed: int = 7, base: Path = micro_model, **values: Any) -> tuple[Setup, Plan]:
        defaults: dict[str, Any] = {
            "num_rows": 24,
            "n_epochs": 2,
            "batch_size": 4,
            "learning_rate_multiplier": 1.0,
            "learning_rate": 3e-3,
            "context_window": 512,
            "lora_rank": 16,
            "lora_alpha": 32.0,
            "micro_batch_tokens": 4096,
            "threads": 1,
            "device": "cpu",
            "dtype": "float32",
            "environment": {},
        }
        plan = Plan(**(defaults | values))
        job = Job(
            id="ftjob-1",
            created_at=0,
            status=Status.RUNNING,
            base="micro",
            model_name="ft:micro",
            method={},
            training_file="file-1",
            training_blob="files/1",
            seed=seed,
        )
        training = example_rows("style_train.jsonl")[: plan.num_rows]
        validation = example_rows("style_validation.jsonl")
        return set_up(job, BaseModelSettings(path=str(base)), plan, training, validation), plan

    return make
