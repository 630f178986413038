"""TRL is the oracle: the losses of the first steps must be those of its trainer on the same rows."""

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
from caesura.training.hyperparameters import learning_rate_at
from caesura.training.plan import Plan
from caesura.training.trainer import ADAM_BETAS, MAX_GRADIENT_NORM, Trainer
from tests.training.conftest import MakeSetup, layers_of
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

    set_adapter(layers_of(setup), fresh_adapter(layers_of(setup), 16, 32.0, seed=1))
    ours = setup.method.backward(setup.base.model, 1)["loss"]

    assert len(lines) == plan.batch_size
    assert ours == pytest.approx(first_loss_of_trl(model, lines, tmp_path), abs=1e-4)


def losses_of_trl(path: Path, plan: Plan, lines: list[list[int]], folder: Path) -> list[float]:
    """Of its trainer without an adapter, at the same rates."""
    rows = example_rows("style_train.jsonl")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=ADAM_BETAS, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: learning_rate_at(done + 1, plan.num_steps, plan.learning_rate)
    )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder),
            assistant_only_loss=True,
            per_device_train_batch_size=plan.batch_size,
            max_steps=len(lines),
            logging_steps=1,
            max_grad_norm=MAX_GRADIENT_NORM,
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"messages": rows[line - 1]["messages"]} for step in lines for line in step]),
        processing_class=AutoTokenizer.from_pretrained(path),
        optimizers=(optimizer, schedule),
    )
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.filterwarnings("ignore")
def test_the_first_losses_of_a_training_of_all_weights_are_those_of_trls_trainer_without_an_adapter(
    make_setup: MakeSetup, micro_model: Path, tmp_path: Path
) -> None:
    setup, plan = make_setup(adapter_type="full", batch_size=8, n_epochs=1, learning_rate=1e-3)
    trainer = Trainer(setup.base, setup.trained, setup.method, plan, setup.trained.fresh_state(7))
    lines = [[row.line for row in setup.method.rows_of_step(step)] for step in (1, 2, 3)]

    ours = [trainer.step().metrics["train_loss"] for _ in lines]
    torch.use_deterministic_algorithms(mode=False)
    theirs = losses_of_trl(micro_model, plan, lines, tmp_path)

    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours[0] - ours[2] > 0.01
