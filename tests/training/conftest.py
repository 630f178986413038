from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caesura.jobs import Job, Status
from caesura.models.lora import Layers
from caesura.models.tuned import Tuned
from caesura.settings import BaseModelSettings
from caesura.training.plan import Plan
from caesura.training.setup import AnyRow, Setup, read_rows, set_up
from caesura.training.state import State
from caesura.training.trained import TrainedAdapter
from tests.world import EXAMPLES

MakeSetup = Callable[..., tuple[Setup, Plan]]


#: The plan of a DPO job, beside what every plan has.
PREFERENCE = {"beta": 0.1, "loss_type": "sigmoid", "label_smoothing": 0.0, "l2_multiplier": 0.0}
EXAMPLES_OF = {"supervised": "style", "dpo": "preference"}


def example_rows(name: str, method: str) -> list[AnyRow]:
    with (EXAMPLES / name).open("rb") as lines:
        return read_rows(lines, method)


def layers_of(setup: Setup) -> Layers:
    """Those that an adapter is trained on."""
    assert isinstance(setup.trained, TrainedAdapter)
    return setup.trained.layers


@pytest.fixture
def make_setup(micro_model: Path) -> MakeSetup:
    """A trainer's parts over the first example rows, and the micro model if no other is named."""

    def make(
        seed: int = 7,
        base: Path = micro_model,
        method: str = "supervised",
        start: Tuned | None = None,
        **values: Any,
    ) -> tuple[Setup, Plan]:
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
            **(PREFERENCE if method == "dpo" else {}),
        }
        plan = Plan(**(defaults | values))
        job = Job(
            id="ftjob-1",
            created_at=0,
            status=Status.RUNNING,
            base="micro",
            model_name="ft:micro",
            method={"type": method, method: {}},
            training_file="file-1",
            training_blob="files/1",
            seed=seed,
        )
        training = example_rows(f"{EXAMPLES_OF[method]}_train.jsonl", method)[: plan.num_rows]
        validation = example_rows(f"{EXAMPLES_OF[method]}_validation.jsonl", method)
        return set_up(job, BaseModelSettings(path=str(base)), plan, training, validation, start), plan

    return make


def both_files(state: State) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files that a state is saved as, read back: of what is trained, and of the rest."""
    both = state.adapter_files("micro"), state.optimizer_files()
    adapter, optimizer = ({name: bytes(content) for name, content in files.items()} for files in both)
    return adapter, optimizer


def whole_files(state: State) -> dict[str, bytes]:
    adapter, optimizer = both_files(state)
    return adapter | optimizer
