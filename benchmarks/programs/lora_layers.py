"""Steps of one batch with our LoRA layers and with PEFT's, in turn, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks.chats import make_chats
from benchmarks.programs import arguments, finish
from caesura.data.render import Example, render_row
from caesura.data.rows import Row
from caesura.models.loading import Base, load_base
from caesura.models.lora import add_lora, fresh_adapter, set_adapter
from caesura.settings import EMBEDDED_BASE, EMBEDDED_BASE_PATH, BaseModelSettings
from caesura.training.adapters import LORA_ALPHA
from caesura.training.batch import Batch, make_batch
from caesura.training.hyperparameters import LORA_RANK
from caesura.training.logprobs import token_logprobs
from caesura.training.losses import cross_entropy
from caesura.training.trainer import ADAM_BETAS, MAX_GRADIENT_NORM

#: Three batches of eight rows of about the same length: short, the median, long.
PLACES = (0.1, 0.5, 0.9)
BATCH_SIZE = 8
NUM_ROWS = 320
LEARNING_RATE = 1e-3
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}

#: Does one step on a batch and returns its loss.
Step = Callable[[Batch], float]


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked["threads"])
    finish({dtype: _compare(dtype, asked["rounds"]) for dtype in ("float32", "bfloat16")})


def _compare(dtype: str, num_rounds: int) -> dict[str, float]:
    """Median seconds of the three steps together, by kind of layers, and the median of the rounds' ratios."""
    ours, theirs = _load(dtype), _load(dtype)
    batches = _batches(ours)
    steps = {"ours": _stepper(_with_ours(ours)), "peft": _stepper(_with_peft(theirs))}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(num_rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            losses = [step(batch) for batch in batches]
            if round_number:  # the first one warms up
                seconds[name].append(time.perf_counter() - began)
            elif name == "ours":
                expected = losses[0]
            else:
                assert abs(losses[0] - expected) < TOLERANCE[dtype], (losses[0], expected)
    ratios = [peft_s / our_s for our_s, peft_s in zip(seconds["ours"], seconds["peft"], strict=True)]
    return {name: statistics.median(times) for name, times in (*seconds.items(), ("ratio", ratios))}


def _load(dtype: str) -> Base:
    settings = BaseModelSettings(path=str(EMBEDDED_BASE_PATH))
    return load_base(EMBEDDED_BASE, settings, getattr(torch, dtype), torch.device("cpu"))


def _batches(base: Base) -> list[Batch]:
    rows = [Row(line, chat["messages"], None, True) for line, chat in enumerate(make_chats(NUM_ROWS), start=1)]
    examples = [render_row(row, base.tokenizer, base.context_window) for row in rows]
    by_length: list[Example] = sorted(examples, key=lambda example: len(example.token_ids))
    firsts = [int(place * NUM_ROWS) for place in PLACES]
    return [make_batch(by_length[first : first + BATCH_SIZE]) for first in firsts]


def _with_ours(base: Base) -> nn.Module:
    layers = add_lora(base.model)
    set_adapter(layers, fresh_adapter(layers, LORA_RANK, LORA_ALPHA, seed=1))
    return base.model


def _with_peft(base: Base) -> nn.Module:
    config = LoraConfig(r=LORA_RANK, lora_alpha=int(LORA_ALPHA), target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base.model, config)


def _stepper(model: nn.Module) -> Step:
    """The arithmetic of the product's step; only the layers differ."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=ADAM_BETAS, weight_decay=0.0, fused=True)

    def step(batch: Batch) -> float:
        logprobs_BK, _ = token_logprobs(model, batch)
        loss = cross_entropy(logprobs_BK, batch.mask_BK, float(batch.mask_BK.sum()))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


if __name__ == "__main__":
    main()
