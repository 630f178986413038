"""The training state as files: weights, optimizer, step number, what the method keeps. All that a resume needs."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import safetensors.torch
from torch import Tensor

from caesura.models import lora, tuned
from caesura.models.lora import Adapter
from caesura.models.tuned import Tuned
from caesura.models.weight_files import WeightFile
from caesura.storage import Content

OPTIMIZER_FILE = "optimizer.safetensors"
COUNTERS_FILE = "counters.json"
KEPT_FILE = "kept.safetensors"
TRAINED_PREFIX = "trained_"


@dataclass(frozen=True, slots=True)
class State:
    """What a step starts from and ends in. Tensors are on the CPU and belong to the state alone."""

    step: int
    #: What is trained: an adapter, or all weights.
    adapter: Tuned
    #: AdamW's moments by parameter, `{name}.exp_avg` and `{name}.exp_avg_sq`, and `{name}.step`.
    optimizer: dict[str, Tensor]
    #: Steps in a row whose loss or gradient was not finite.
    num_not_finite: int = 0
    #: What the method has computed once and keeps (`Method.capture`).
    kept: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    #: How long the training took and the like, as whoever drives it wants it back: no step depends on it.
    measured: dict[str, float] = field(default_factory=dict[str, float])
    #: The adapter of before that is kept beside `adapter`, which then is one too, and alone is trained.
    frozen: Adapter | None = None

    def adapter_files(self, base_name: str) -> Mapping[str, Content]:
        """What is delivered: one adapter, whatever it is made of; or all weights."""
        if self.frozen is None:
            return tuned.to_files(self.adapter, base_name)
        assert isinstance(self.adapter, Adapter)
        return lora.to_files(lora.join(self.frozen, self.adapter), base_name)

    def optimizer_files(self) -> Mapping[str, Content]:
        counters = {"step": self.step, "num_not_finite": self.num_not_finite, "measured": self.measured}
        files: dict[str, Content] = {
            OPTIMIZER_FILE: WeightFile(self.optimizer),
            COUNTERS_FILE: json.dumps(counters).encode(),
        }
        if self.kept:
            files[KEPT_FILE] = WeightFile(self.kept)
        if self.frozen is not None:  # out of the joined one it could be had only up to rounding
            files |= {TRAINED_PREFIX + name: data for name, data in tuned.to_files(self.adapter, "").items()}
        return files


def from_files(adapter_files: dict[str, bytes], optimizer_files: dict[str, bytes], start: Tuned | None = None) -> State:
    """`start`: what the training goes on from; it is the frozen adapter if the state has one."""
    counters = json.loads(optimizer_files[COUNTERS_FILE])
    trained = {
        name.removeprefix(TRAINED_PREFIX): data
        for name, data in optimizer_files.items()
        if name.startswith(TRAINED_PREFIX)
    }
    return State(
        step=counters["step"],
        adapter=tuned.from_files(trained or adapter_files),
        optimizer=safetensors.torch.load(optimizer_files[OPTIMIZER_FILE]),
        num_not_finite=counters["num_not_finite"],
        kept=safetensors.torch.load(optimizer_files[KEPT_FILE]) if KEPT_FILE in optimizer_files else {},
        measured=counters.get("measured", {}),
        frozen=start if trained and isinstance(start, Adapter) else None,
    )


def copy_to_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies that the next step cannot change."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
