"""From what the user asked for to numbers: `auto` resolved, the learning rate of every step. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Auto = Literal["auto"]

TARGET_EPOCHS = 3
MIN_TARGET_EXAMPLES = 100
MAX_TARGET_EXAMPLES = 25_000
MAX_AUTO_EPOCHS = 25
MAX_BATCH_SIZE = 256
BATCH_SHARE = 0.002

#: The learning rate at multiplier 1 of a model of 7 B parameters in batches of 8, and how it grows as models shrink.
REFERENCE_RATE = 2e-4
REFERENCE_PARAMETERS = 7e9
REFERENCE_BATCH_SIZE = 8
RATE_EXPONENT = 0.434
MIN_RATE, MAX_RATE = 5e-5, 5e-3
#: What a preference job takes of that rate: its loss pushes on where cross-entropy has long come to rest.
PREFERENCE_RATE_SHARE = 0.06
#: `auto` takes no smaller batches of pairs: one pair alone pulls the answers about.
MIN_PREFERENCE_BATCH_SIZE = 8
DEFAULT_BETA = 0.1
#: What a reinforcement job takes of the rate: its gradients are noisy, and say how to shift a model, not what to copy.
REINFORCEMENT_RATE_SHARE = 0.4
#: Answers to a prompt at compute_multiplier 1, and the fewest that can be compared.
SAMPLES_PER_PROMPT = 8
MIN_SAMPLES_PER_PROMPT = 2
#: `auto` takes no smaller batches of prompts.
MIN_PROMPTS_PER_STEP = 8
#: `auto` validates so many times in a job.
NUM_VALIDATIONS = 10
#: Tokens that an answer may have, reasoning included, by the effort; never more than the context leaves.
EFFORT_TOKENS = {"low": 256, "default": 1024, "medium": 1024, "high": 4096}
#: From each method to the fewest rows of a batch that `auto` takes.
MIN_BATCH_SIZES = {
    "supervised": 1,
    "dpo": MIN_PREFERENCE_BATCH_SIZE,
    "reinforcement": MIN_PROMPTS_PER_STEP,
}
#: And to what it takes of the learning rate.
RATE_SHARES = {"supervised": 1.0, "dpo": PREFERENCE_RATE_SHARE, "reinforcement": REINFORCEMENT_RATE_SHARE}
#: What a job takes of it that trains all weights: LoRA's best rates were found to be some ten times those of full
#: training, whatever the model's size (Schulman et al. 2025, LoRA Without Regret).
FULL_RATE_SHARE = 0.1
#: Of an adapter, where nobody says another.
LORA_RANK = 16
#: Tokens of one forward pass. On a CPU more of them leave its caches and gain nothing (docs/benchmarks.md).
MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 4096}
#: Share of the steps in which the rate rises to its peak.
WARMUP_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float


@dataclass(frozen=True, slots=True)
class PreferenceHyperparameters:
    beta: float
    loss_type: str
    label_smoothing: float
    #: AdamW's decoupled weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101): pulls the adapter towards the base.
    l2_multiplier: float


@dataclass(frozen=True, slots=True)
class ReinforcementHyperparameters:
    compute_multiplier: float
    samples_per_prompt: int
    #: Steps between validations.
    eval_interval: int
    #: Answers to each prompt of the validation file.
    eval_samples: int
    reasoning_effort: str
    max_completion_tokens: int
    kl_coefficient: float
    updates_per_batch: int


def resolve(asked: dict[str, Any], num_rows: int, method: str = "supervised") -> Hyperparameters:
    """Replace every `auto` by a number, as OpenAI's service was seen to (its cookbook's rule for the epochs)."""
    epochs: int | Auto = asked.get("n_epochs", "auto")
    batch_size: int | Auto = asked.get("batch_size", "auto")
    multiplier: float | Auto = asked.get("learning_rate_multiplier", "auto")
    num_in_batch = max(MIN_BATCH_SIZES[method], auto_batch_size(num_rows)) if batch_size == "auto" else batch_size
    return Hyperparameters(
        n_epochs=auto_epochs(num_rows) if epochs == "auto" else epochs,
        batch_size=num_in_batch,
        learning_rate_multiplier=auto_multiplier(num_in_batch) if multiplier == "auto" else multiplier,
    )


def resolve_preference(asked: dict[str, Any]) -> PreferenceHyperparameters:
    """The hyperparameters that only DPO has; beta as in the paper's experiments, and no weight decay unless asked."""
    beta: float | Auto = asked.get("beta", "auto")
    l2_multiplier: float | Auto = asked.get("l2_multiplier", "auto")
    return PreferenceHyperparameters(
        beta=DEFAULT_BETA if beta == "auto" else beta,
        loss_type=asked.get("loss_type", "sigmoid"),
        label_smoothing=asked.get("label_smoothing", 0.0),
        l2_multiplier=0.0 if l2_multiplier == "auto" else l2_multiplier,
    )


def resolve_reinforcement(asked: dict[str, Any], num_steps: int) -> ReinforcementHyperparameters:
    """The hyperparameters that only reinforcement has. `num_steps`: of the job."""
    multiplier: float | Auto = asked.get("compute_multiplier", "auto")
    interval: int | Auto = asked.get("eval_interval", "auto")
    samples: int | Auto = asked.get("eval_samples", "auto")
    effort: str = asked.get("reasoning_effort", "default")
    compute = 1.0 if multiplier == "auto" else multiplier
    return ReinforcementHyperparameters(
        compute_multiplier=compute,
        samples_per_prompt=max(MIN_SAMPLES_PER_PROMPT, round(SAMPLES_PER_PROMPT * compute)),
        eval_interval=max(1, round(num_steps / NUM_VALIDATIONS)) if interval == "auto" else interval,
        eval_samples=1 if samples == "auto" else samples,
        reasoning_effort=effort,
        max_completion_tokens=asked.get("max_completion_tokens", EFFORT_TOKENS[effort]),
        kl_coefficient=asked.get("kl_coefficient", 0.0),
        updates_per_batch=asked.get("updates_per_batch", 1),
    )


def auto_epochs(num_rows: int) -> int:
    """3 epochs, more where that shows fewer than 100 examples (at most 25), fewer where it shows over 25,000."""
    if num_rows * TARGET_EPOCHS < MIN_TARGET_EXAMPLES:
        return min(MAX_AUTO_EPOCHS, MIN_TARGET_EXAMPLES // num_rows)
    if num_rows * TARGET_EPOCHS > MAX_TARGET_EXAMPLES:
        return max(1, MAX_TARGET_EXAMPLES // num_rows)
    return TARGET_EPOCHS


def auto_batch_size(num_rows: int) -> int:
    """About 0.2 % of the rows, 1 to 256."""
    return max(1, min(MAX_BATCH_SIZE, round(num_rows * BATCH_SHARE)))


def auto_multiplier(batch_size: int) -> float:
    """√(batch size / 8), at most 1, with two decimals: Adam's rate goes with the root of the batch size, whose
    gradients are the noisier the smaller it is (Malladi et al. 2022, arXiv:2205.10287)."""
    return round(min(1.0, math.sqrt(batch_size / REFERENCE_BATCH_SIZE)), 2)


def base_learning_rate(num_parameters: int) -> float:
    """The rate of a LoRA adapter at multiplier 1: 2e-4 at 7 B parameters, 5e-3 at the embedded base's 4.2 M.

    Small models want a much higher rate than large ones: between a usual rate of 7 B models and the one that was
    measured best for the embedded base (its model card has the figures), a power law is drawn.
    """
    rate = REFERENCE_RATE * (REFERENCE_PARAMETERS / num_parameters) ** RATE_EXPONENT
    return min(MAX_RATE, max(MIN_RATE, rate))


def learning_rate_at(step: int, num_steps: int, peak: float) -> float:
    """The rate of the 1-based `step`: a linear warm-up, then a cosine towards 0 (Loshchilov & Hutter 2016, SGDR)."""
    num_warmup = max(1, round(num_steps * WARMUP_SHARE))
    if step <= num_warmup:
        return peak * (step / num_warmup)
    progress = (step - num_warmup) / (num_steps - num_warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
