"""The plan of a job: every number that its arithmetic depends on. Made at the first attempt, stored with the job,
and used again at every later one, so that a resume computes the same bytes."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
import transformers

from caesura import __version__
from caesura.data.order import derive_seed, num_batches, num_steps
from caesura.jobs import Job
from caesura.models.loading import choose_device, list_layers, measure_base
from caesura.models.tuned import Tuned
from caesura.schema.adapters import ALL_LINEAR, FULL
from caesura.settings import BaseModelSettings, Settings
from caesura.training.adapters import resolve_adapter
from caesura.training.hyperparameters import (
    FULL_RATE_SHARE,
    MICRO_BATCH_TOKENS,
    RATE_SHARES,
    base_learning_rate,
    resolve,
    resolve_preference,
    resolve_reinforcement,
)

#: Answers that are sampled together, in whole groups. More of them cost little on a GPU; a pause drops what is begun.
SAMPLED_TOGETHER = {"cpu": 64, "cuda": 256}


@dataclass(frozen=True, slots=True)
class Plan:
    num_rows: int
    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    learning_rate: float
    #: Tokens of a row; longer ones are cut.
    context_window: int
    #: Of the adapter that is trained; more of it stands further below.
    lora_rank: int
    lora_alpha: float
    micro_batch_tokens: int
    threads: int
    device: str
    dtype: str
    #: What the bytes depend on but nobody chooses: versions and the kind of processor.
    environment: dict[str, str]
    #: What only a supervised job has.
    prompt_loss_weight: float | None = None
    #: Steps from one checkpoint to the next, beside those of the epochs; of supervised jobs and DPO.
    checkpoint_every: int | None = None
    #: What only DPO has.
    beta: float | None = None
    loss_type: str | None = None
    label_smoothing: float | None = None
    l2_multiplier: float | None = None
    #: What only reinforcement has (ReinforcementHyperparameters), and how many answers are sampled together.
    compute_multiplier: float | None = None
    samples_per_prompt: int | None = None
    eval_interval: int | None = None
    eval_samples: int | None = None
    reasoning_effort: str | None = None
    max_completion_tokens: int | None = None
    kl_coefficient: float | None = None
    updates_per_batch: int | None = None
    sampled_together: int | None = None
    #: Plans that were stored by older versions have none of these.
    adapter_type: str = "lora"
    lora_dropout: float = 0.0
    #: `all-linear`, or ends of the layers' names.
    target_modules: str | list[str] = ALL_LINEAR
    #: Of the tuned model's adapter, where that is kept beside the one that is trained; 0: none is.
    frozen_rank: int = 0
    #: What a step drops is a function of this and the step.
    dropout_seed: int = 0

    @property
    def steps_per_epoch(self) -> int:
        return num_batches(self.num_rows, self.batch_size)

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.n_epochs

    def ends_epoch(self, step: int) -> bool:
        return step % self.steps_per_epoch == 0

    def makes_checkpoint(self, step: int) -> bool:
        """Of supervised jobs and DPO: at the end of every epoch, and every so many steps where the job asks for it."""
        return self.ends_epoch(step) or (self.checkpoint_every is not None and step % self.checkpoint_every == 0)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(**value)


def make_plan(job: Job, settings: Settings, base: BaseModelSettings, num_rows: int, start: Tuned | None) -> Plan:
    """Resolve the hyperparameters and choose the arithmetic from what this machine is.

    `start`: the tuned model that the training goes on from. Raises InvalidRequest as `resolve_adapter`,
    and where the base cannot be measured.
    """
    kind: str = job.method["type"]
    asked: dict[str, Any] = job.method[kind].get("hyperparameters", {})
    resolved = resolve(asked, num_rows, kind)
    num_parameters, context_window = measure_base(job.base, base)
    adapter = resolve_adapter(
        job.extras.get("adapter", {}), base.adapter.given(), start, lambda: list_layers(job.base, base)
    )
    rate_share = RATE_SHARES[kind] * (FULL_RATE_SHARE if adapter.adapter_type == FULL else 1.0)
    device = choose_device(settings.device)
    return Plan(
        num_rows=num_rows,
        n_epochs=resolved.n_epochs,
        batch_size=resolved.batch_size,
        learning_rate_multiplier=resolved.learning_rate_multiplier,
        learning_rate=base_learning_rate(num_parameters) * rate_share * resolved.learning_rate_multiplier,
        context_window=context_window,
        micro_batch_tokens=settings.micro_batch_tokens or MICRO_BATCH_TOKENS[device.type],
        threads=settings.threads or max(1, len(os.sched_getaffinity(0)) // settings.slots),
        device=device.type,
        dtype=choose_dtype(settings.dtype, device),
        environment=environment(device.type),
        checkpoint_every=job.extras.get("checkpoint_every"),
        dropout_seed=derive_seed("dropout", job.seed),
        **asdict(adapter),
        **_resolve_own(kind, asked, num_steps(num_rows, resolved.batch_size, resolved.n_epochs), device),
    )


def _resolve_own(kind: str, asked: dict[str, Any], num_steps: int, device: torch.device) -> dict[str, Any]:
    """What only the method has."""
    if kind == "dpo":
        return asdict(resolve_preference(asked))
    if kind == "reinforcement":
        return asdict(resolve_reinforcement(asked, num_steps)) | {"sampled_together": SAMPLED_TOGETHER[device.type]}
    return {"prompt_loss_weight": asked.get("prompt_loss_weight", 0.0)}


def environment(device: str) -> dict[str, str]:
    """What the same bytes also need to be the same."""
    processor = torch.cuda.get_device_name() if device == "cuda" else _describe_cpu()
    return {
        "caesura": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "processor": processor,
    }


def _describe_cpu() -> str:
    """The instructions that matrix products are made of here."""
    has_amx = torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
    return torch.backends.cpu.get_cpu_capability() + (" with AMX" if has_amx else "")


def choose_dtype(wanted: str, device: torch.device) -> str:
    """bfloat16 where the processor multiplies it natively: twice the rate at the same loss (docs/benchmarks.md)."""
    if wanted != "auto":
        return wanted
    is_native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    return "bfloat16" if is_native else "float32"
