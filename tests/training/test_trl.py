"""TRL is the oracle: the first step's loss must be that of its trainer on the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from caesura.models.lora import fresh_adapter, set_adapter
from caesura.settings import EMBEDDED_BASE_PATH
from tests.training.conftest import MakeSetup
from tests.world import example_rows


@pytest.fixture(autouse=True)
def usual_algorithms() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(mode=False)


def first_loss_of_trl(model: Path, lines: list[int], folder: Path) -> float:
    rows = example_rows("style_train.jsonl")
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(folder),
            assistant_only_loss=True,
            per_device_train_batch_size=len(lines),
            max_steps=1,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"messages": rows[line - 1]["messages"]} for line in lines]),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    return float(trainer.state.log_history[0]["loss"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("base", ["micro", "embedded"])
def test_the_first_steps_loss_is_that_of_trls_trainer_on_the_same_rows(
    make_setup: MakeSetup, micro_model: Path, tmp_path: Path, base: str
) -> None:
    model = micro_model if base == "micro" else EMBEDDED_BASE_PATH
    setup, plan = make_setup(base=model, batch_size=8)
    lines = [row.line for row in setup.method.rows_of_step(1)]

    set_adapter(setup.layers, fresh_adapter(setup.layers, 16, 32.0, seed=1))
    ours = setup.method.backward(setup.base.model, 1)["loss"]

    assert len(lines) == plan.batch_size
    assert ours == pytest.approx(first_loss_of_trl(model, lines, tmp_path), abs=1e-4)
