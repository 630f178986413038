"""TRL is the oracle of reinforcement too: on the same answers, loss and gradients must be those of its GRPOTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from caesura.models.lora import Adapter, add_lora, fresh_adapter, get_adapter, set_adapter, using_adapter
from caesura.training.collector import Collector, Timing
from caesura.training.group_batch import Answers, own_logprobs, split_answers
from caesura.training.losses import group_advantages
from caesura.training.plan import Plan
from caesura.training.reinforcement import CLIP_HIGH, CLIP_LOW, Reinforcement, _Batch
from caesura.training.rollouts import Rollout

CPU = torch.device("cpu")
REWARDS = [[1.0, 0.0, 0.5, 0.25], [0.0, 0.0, 0.0, 1.0], [0.3, 0.2, 0.9, 0.9]]


def make_groups() -> list[Answers]:
    """Three prompts with four answers each, of different lengths; a tool speaks in the middle of one."""
    generator = torch.Generator().manual_seed(5)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, 2000, (count,), generator=generator).tolist()

    groups: list[Answers] = []
    for number, rewards in enumerate(REWARDS):
        prompt = tokens(4 + 3 * number)
        rollouts: list[Rollout] = []
        for index in range(len(rewards)):
            answer_ids = tokens(2 + 3 * index)
            is_own = [1] * len(answer_ids)
            if (number, index) == (1, 2):
                is_own[2:5] = [0, 0, 0]
            rollouts.append(Rollout(number + 1, index, prompt, answer_ids, [0.0] * len(is_own), is_own, "stop", []))
        groups.append(Answers(rollouts, group_advantages(torch.tensor(rewards)).tolist()))
    return groups


def plan_with(kl_coefficient: float) -> Plan:
    """As much of one as the method looks at."""
    values = {"kl_coefficient": kl_coefficient, "frozen_rank": 0, "updates_per_batch": 2, "device": "cpu"}
    return cast(Plan, type("P", (), values)())


def changed(adapter: Adapter, seed: int) -> Adapter:
    """An adapter that gives some tokens more than 1.28, and others less than 0.8 times the probability."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: weight + 0.05 * torch.randn(weight.shape, generator=generator) for name, weight in adapter.weights.items()
    }
    return Adapter(adapter.rank, adapter.alpha, weights)


def pad(rows: list[list[float]], left: bool = False) -> Tensor:
    width = max(map(len, rows))
    padded = [[0] * (width - len(row)) + row if left else row + [0] * (width - len(row)) for row in rows]
    return torch.tensor(padded)


def per_answer(values_K: Tensor, rollouts: list[Rollout]) -> list[list[float]]:
    """The values of own tokens, in their places among all tokens of each answer."""
    values = iter(values_K.tolist())
    return [[next(values) if is_own else 0.0 for is_own in rollout.is_own] for rollout in rollouts]


def trls(
    model: nn.Module,
    path: Path,
    folder: Path,
    kl_coefficient: float,
    groups: list[Answers],
    old_K: Tensor | None,
    reference_K: Tensor,
) -> Tensor:
    rollouts = [rollout for answers in groups for rollout in answers.rollouts]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(folder),
            loss_type="dapo",
            epsilon=CLIP_LOW,
            epsilon_high=CLIP_HIGH,
            beta=kl_coefficient,
            num_generations=4,
            per_device_train_batch_size=len(rollouts),
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": "x"}]),
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    trainer.current_gradient_accumulation_steps = 1
    model.train()
    own = pad([rollout.is_own for rollout in rollouts])
    inputs = {
        "prompt_ids": pad([rollout.prompt_ids for rollout in rollouts], left=True),
        "prompt_mask": pad([[1] * len(rollout.prompt_ids) for rollout in rollouts], left=True),
        "completion_ids": pad([rollout.answer_ids for rollout in rollouts]),
        "completion_mask": pad([[1] * len(rollout.answer_ids) for rollout in rollouts]),
        "tool_mask": own,
        "advantages": torch.tensor([advantage for answers in groups for advantage in answers.advantages]),
        "ref_per_token_logps": pad(per_answer(reference_K, rollouts)),
        "num_items_in_batch": own.sum(),
    }
    if old_K is not None:
        inputs["old_per_token_logps"] = pad(per_answer(old_K, rollouts))
    loss: Tensor = trainer._compute_loss(model, inputs)
    return loss


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kl_coefficient", [0.0, 0.1])
@pytest.mark.parametrize("is_first", [True, False], ids=["first update", "second update"])
@pytest.mark.parametrize("sharing", [True, False], ids=["flat", "padded"])
@pytest.mark.parametrize("micro_batch_tokens", [4096, 40])
def test_loss_and_gradients_on_the_same_answers_are_trls(
    micro_model: Path, tmp_path: Path, kl_coefficient: float, is_first: bool, sharing: bool, micro_batch_tokens: int
) -> None:
    base: nn.Module = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
    base.requires_grad_(requires_grad=False)
    layers = add_lora(base)
    start = changed(fresh_adapter(layers, 16, 32.0, seed=1), seed=1)
    groups = make_groups()
    plan = plan_with(kl_coefficient)
    method = Reinforcement(cast(Any, None), plan, 7, layers, None, cast(Collector, None), sharing)
    passes = split_answers(groups, micro_batch_tokens, sharing)
    num_tokens = sum(answers.num_own_tokens for answers in groups)
    set_adapter(layers, start)

    def logprobs(batch: list[Answers]) -> Tensor:
        with torch.no_grad():
            return own_logprobs(base, batch, sharing, CPU)

    # The sampler's are those of training: nothing is to be mended.
    old = logprobs(groups)
    told = iter(old.tolist())
    for answers in groups:
        for rollout in answers.rollouts:
            rollout.logprobs[:] = [next(told) if is_own else 0.0 for is_own in rollout.is_own]
    batch = _Batch(1, [], [], passes, num_tokens, Timing())
    if not is_first:
        batch.old_logprobs = [logprobs(part) for part in passes]
        with using_adapter(layers, None):
            batch.reference_logprobs = [logprobs(part) for part in passes]
        set_adapter(layers, changed(start, seed=2))
    with using_adapter(layers, None):
        reference = logprobs(groups)
    now = get_adapter(layers, 16, 32.0)

    ours = method._update(base, batch)

    peft = get_peft_model(
        AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32),
        LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    set_peft_model_state_dict(peft, now.weights)
    theirs = trls(peft, micro_model, tmp_path, kl_coefficient, groups, None if is_first else old, reference)
    theirs.backward()
    assert ours == pytest.approx(theirs.item(), abs=1e-5)
    gradients = {name.replace(".default", ""): p.grad for name, p in peft.named_parameters() if p.requires_grad}
    for name, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            their = gradients[f"base_model.model.{name}.{part}.weight"]
            torch.testing.assert_close(getattr(layer, part).grad, their, atol=1e-5, rtol=1e-3)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-2


def test_drift_is_that_of_the_sampler_before_anything_is_learned(micro_model: Path) -> None:
    base: nn.Module = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
    base.requires_grad_(requires_grad=False)
    layers = add_lora(base)
    set_adapter(layers, changed(fresh_adapter(layers, 16, 32.0, seed=1), seed=1))
    groups = make_groups()
    plan = plan_with(0.0)
    method = Reinforcement(cast(Any, None), plan, 7, layers, None, cast(Collector, None), sharing=True)
    num_tokens = sum(answers.num_own_tokens for answers in groups)
    with torch.no_grad():
        told = iter(own_logprobs(base, groups, sharing=True, device=CPU).tolist())
    for answers in groups:
        for rollout in answers.rollouts:
            rollout.logprobs[:] = [next(told) - 0.25 if is_own else 0.0 for is_own in rollout.is_own]
    batch = _Batch(1, [], [], split_answers(groups, 40, sharing=True), num_tokens, Timing())

    method._update(base, batch)
    first = batch.drift
    method._update(base, batch)

    assert first == pytest.approx(0.25 * num_tokens, rel=1e-4)
    assert batch.drift == first
