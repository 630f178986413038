"""TRL is the oracle of DPO too: losses, rewards and gradients of the first steps must be those of its trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from caesura.models.lora import Adapter, fresh_adapter
from caesura.settings import EMBEDDED_BASE_PATH
from caesura.training.hyperparameters import learning_rate_at
from caesura.training.plan import Plan
from caesura.training.trainer import ADAM_BETAS, MAX_GRADIENT_NORM, Trainer
from tests.training.conftest import MakeSetup, layers_of
from tests.world import example_rows

NUM_STEPS = 3
#: Adam divides by the size of a gradient: with its usual epsilon, rounding in gradients near 0 becomes whole steps.
EPSILON = 1e-4
BATCH_SIZE = 8
#: What is measured at a step, as we name it and as TRL does.
NAMES = {
    "loss": "loss",
    "reward_accuracy": "rewards/accuracies",
    "reward_margin": "rewards/margins",
    "reward_chosen": "rewards/chosen",
    "reward_rejected": "rewards/rejected",
    "mean_token_accuracy": "mean_token_accuracy",
}
LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "ipo": {"loss_type": "ipo"},
    "beta": {"beta": 1.5},
}


@pytest.fixture(autouse=True)
def usual_algorithms() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(mode=False)


def a_tuned_adapter(fresh: Adapter) -> Adapter:
    """An adapter that changes what the model says: a reference that is not the base."""
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: weight + 0.02 * torch.randn(weight.shape, generator=generator) for name, weight in fresh.weights.items()
    }
    return Adapter(fresh.rank, fresh.alpha, weights)


def as_text(row: dict[str, Any], tokenizer: Any) -> dict[str, str]:
    """The pair as text, to which TRL adds the end of the turn: of messages it would compare the line end behind that
    as well, which no model writes."""
    options = {"tokenize": False, "add_generation_prompt": True}
    return {
        "prompt": tokenizer.apply_chat_template(row["input"]["messages"], **options),
        "chosen": row["preferred_output"][0]["content"],
        "rejected": row["non_preferred_output"][0]["content"],
    }


class Watching(TrainerCallback):
    """Keeps the gradients of every step, as the optimizer gets them."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        self.gradients.append(
            {name.replace(".default", ""): p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        )


def steps_of_trl(
    model: nn.Module, plan: Plan, lines: list[list[int]], folder: Path, **loss: Any
) -> tuple[list[dict[str, float]], list[dict[str, Tensor]]]:
    rows = example_rows("preference_train.jsonl")
    pairs = [rows[line - 1] for step in lines for line in step]
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=1.0,
        betas=ADAM_BETAS,
        eps=EPSILON,
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: learning_rate_at(done + 1, plan.num_steps, plan.learning_rate)
    )
    watching = Watching()
    tokenizer = AutoTokenizer.from_pretrained(model.get_base_model().name_or_path)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=BATCH_SIZE,
            max_steps=len(lines),
            logging_steps=1,
            max_grad_norm=MAX_GRADIENT_NORM,
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **({"beta": plan.beta} | loss),
        ),
        train_dataset=Dataset.from_list([as_text(row, tokenizer) for row in pairs]),
        processing_class=tokenizer,
        optimizers=(optimizer, schedule),
        callbacks=[watching],
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "rewards/margins" in log]
    return logs, watching.gradients


def our_steps(trainer: Trainer) -> tuple[list[dict[str, float]], list[dict[str, Tensor]]]:
    parameters: dict[str, nn.Parameter] = trainer._parameters
    gradients: list[dict[str, Tensor]] = []
    original = trainer._optimizer.step
    trainer._optimizer.param_groups[0]["eps"] = EPSILON

    def step() -> None:
        gradients.append({name: parameter.grad.clone() for name, parameter in parameters.items()})  # type: ignore[union-attr]
        original()

    trainer._optimizer.step = step  # type: ignore[method-assign]
    return [trainer.step().metrics for _ in range(NUM_STEPS)], gradients


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("base", ["micro", "embedded"])
@pytest.mark.parametrize("from_tuned", [False, True], ids=["from the base", "from a tuned model"])
def test_losses_rewards_and_gradients_of_the_first_steps_are_trls(
    make_setup: MakeSetup, micro_model: Path, tmp_path: Path, base: str, from_tuned: bool, loss: dict[str, Any]
) -> None:
    path = micro_model if base == "micro" else EMBEDDED_BASE_PATH
    plain, _ = make_setup(base=path)
    fresh = fresh_adapter(layers_of(plain), 16, 32.0, seed=1)
    start = a_tuned_adapter(fresh) if from_tuned else None
    values = {"num_rows": NUM_STEPS * BATCH_SIZE, "batch_size": BATCH_SIZE, "n_epochs": 1, "learning_rate": 1e-3}
    setup, plan = make_setup(base=path, method="dpo", start=start, **(values | loss))
    state = setup.trained.fresh_state(7, start or fresh)
    trainer = Trainer(setup.base, setup.trained, setup.method, plan, state)
    lines = [[row.line for row in setup.method.rows_of_step(step)] for step in range(1, NUM_STEPS + 1)]

    ours, our_gradients = our_steps(trainer)
    torch.use_deterministic_algorithms(mode=False)
    peft = get_peft_model(
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    set_peft_model_state_dict(peft, state.adapter.weights)
    theirs, their_gradients = steps_of_trl(peft, plan, lines, tmp_path, **loss)

    assert len(theirs) == NUM_STEPS
    for ours_of_step, theirs_of_step in zip(ours, theirs, strict=True):
        for name, trls in NAMES.items():
            assert ours_of_step[f"train_{name}"] == pytest.approx(theirs_of_step[trls], abs=1e-4), name
    for ours_of_step, theirs_of_step in zip(our_gradients, their_gradients, strict=True):
        assert len(ours_of_step) == len(theirs_of_step)
        for name, gradient in ours_of_step.items():
            theirs_of_it = theirs_of_step[f"base_model.model.{name}.weight"]
            torch.testing.assert_close(gradient, theirs_of_it, atol=1e-5, rtol=1e-3)
    assert max(gradient.abs().max() for gradient in our_gradients[-1].values()) > 2e-3
