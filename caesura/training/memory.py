"""What is told where memory does not suffice: what was too large, and the settings that make it smaller."""

from __future__ import annotations

import torch

from caesura.jobs import JobError
from caesura.schema.adapters import FULL
from caesura.training.plan import Plan

#: How torch's CPU allocator begins what it raises, which has no class of its own.
_CPU_ALLOCATOR = "DefaultCPUAllocator"


def is_out_of_memory(error: BaseException) -> bool:
    is_cpus = isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)
    return is_cpus or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def base_too_large(base: str) -> JobError:
    """The error of a job whose base model cannot even be loaded."""
    return JobError(
        "out_of_memory",
        f"The base model '{base}' does not fit into this machine's memory beside what else is in it. Lower the setting "
        "slots, so that fewer jobs train at the same time, or name a smaller base.",
        "model",
    )


def step_too_large(step: int, plan: Plan, kind: str) -> JobError:
    """The error of a job whose step `step` cannot be computed; the batch size is no part of it, as micro-batches are
    what is in memory at a time."""
    setting, rows = "micro_batch_tokens", f"passes of {plan.micro_batch_tokens} tokens"
    if kind == "reinforcement":
        setting = "micro_batch_tokens, or the job's max_completion_tokens"
        rows = f"{plan.sampled_together} answers at once, of up to {plan.max_completion_tokens} tokens each; {rows}"
    adapter = ""
    if plan.adapter_type == FULL:
        adapter = " All weights take 16 bytes a parameter to train: an adapter (adapter.type 'lora') takes far less."
    return JobError(
        "out_of_memory",
        f"Step {step} does not fit into this machine's memory ({rows}, rows of up to {plan.context_window} tokens). "
        f"Lower {setting}, or the model's context_window, in the server's settings, and create the job again: a job "
        f"keeps the values that it began with. A lower batch_size does not help.{adapter}",
    )
