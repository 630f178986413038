"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): y = W x + (alpha / rank) · B A x.

The files are PEFT's, so that an adapter works wherever PEFT does; the layers are ours, because PEFT's cost more
than 5 % of a training step (docs/benchmarks.md; `python -m benchmarks.lora_layers` measures it again).
Not covered: LoRA variants (DoRA, rsLoRA), adapters on embeddings, and the fused expert weights of MoE models.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch and transformers leave the types of what they return open)
from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from caesura.errors import BlobDamaged, InvalidRequest

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
#: PEFT wraps the model twice; its weight names show it.
PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter apart from any model: its weights under PEFT's names, A [rank, in] and B [out, rank], fp32."""

    rank: int
    alpha: float
    weights: dict[str, Tensor]


class LoraLinear(nn.Module):
    """A frozen linear layer and, while one is set, an adapter beside it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.lora_A: nn.Parameter | None = None
        self.lora_B: nn.Parameter | None = None
        self.scaling = 0.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if self.lora_A is None or self.lora_B is None:
            return y
        low_rank = F.linear(x, self.lora_A.to(x.dtype)).flatten(0, -2)
        up = self.lora_B.to(x.dtype).t()
        return torch.addmm(y.flatten(0, -2), low_rank, up, alpha=self.scaling).view(y.shape)


Layers = dict[str, LoraLinear]
Wrapper = TypeVar("Wrapper", bound=nn.Module)


def add_lora(model: nn.Module) -> Layers:
    """Put a LoraLinear round every linear layer but the output head; returns them by module name.

    Until an adapter is set the model computes what it did. Raises InvalidRequest where there is no such layer.
    """
    return wrap_linears(model, lambda _name, module: LoraLinear(module))


def wrap_linears(model: nn.Module, wrap: Callable[[str, nn.Module], Wrapper]) -> dict[str, Wrapper]:
    """Put what `wrap` makes in the place of every linear layer but the output head; returns it by module name.

    Raises InvalidRequest where there is no such layer.
    """
    get_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = get_head()
    layers: dict[str, Wrapper] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head:
            parent, _, child = name.rpartition(".")
            layers[name] = wrap(name, module)
            setattr(model.get_submodule(parent), child, layers[name])
    if not layers:
        raise InvalidRequest("This model has no linear layers to adapt.", param="model", code="unsupported_model")
    return layers


def in_out_features(linear: nn.Module) -> tuple[int, int]:
    weight = linear.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (rows, columns) if isinstance(linear, Conv1D) else (columns, rows)


def fresh_adapter(layers: Layers, rank: int, alpha: float, seed: int) -> Adapter:
    """The adapter that a training begins with, a function of `seed`: A uniform in ±1/√in (as PEFT's), B zero."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, layer in layers.items():
        num_in, num_out = in_out_features(layer.base)
        uniform = torch.rand(rank, num_in, generator=generator) * 2 - 1
        weights[name_A(name)] = uniform / math.sqrt(num_in)
        weights[name_B(name)] = torch.zeros(num_out, rank)
    return Adapter(rank, alpha, weights)


def set_adapter(layers: Layers, adapter: Adapter | None) -> None:
    """Use `adapter` (its weights are copied to the layers' device); None: the base model alone.

    Raises BlobDamaged when a layer's weights are missing or of the wrong shape; the layers are then unchanged.
    """
    if adapter is not None:
        check_fit(adapter, {name: in_out_features(layer.base) for name, layer in layers.items()})
    for name, layer in layers.items():
        if adapter is None:
            layer.lora_A = layer.lora_B = None
            continue
        device = next(layer.base.parameters()).device
        layer.lora_A = _parameter(adapter.weights[name_A(name)], device)
        layer.lora_B = _parameter(adapter.weights[name_B(name)], device)
        layer.scaling = adapter.alpha / adapter.rank


@contextmanager
def using_adapter(layers: Layers, adapter: Adapter | None) -> Generator[None, None, None]:
    """Use another adapter inside the context, None for the base model alone; then the present one again, untouched.

    Raises as `set_adapter`.
    """
    present = {name: (layer.lora_A, layer.lora_B, layer.scaling) for name, layer in layers.items()}
    set_adapter(layers, adapter)
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.lora_A, layer.lora_B, layer.scaling = present[name]


def get_adapter(layers: Layers, rank: int, alpha: float) -> Adapter:
    """The adapter in use. Its tensors share the layers' memory: clone what must outlive the next step."""
    weights: dict[str, Tensor] = {}
    for name, layer in layers.items():
        assert layer.lora_A is not None
        assert layer.lora_B is not None
        weights[name_A(name)] = layer.lora_A.detach()
        weights[name_B(name)] = layer.lora_B.detach()
    return Adapter(rank, alpha, weights)


def to_files(adapter: Adapter, base_name: str) -> dict[str, bytes]:
    """The adapter as PEFT's two files. `base_name` is what PEFT shows as the base."""
    modules = {name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in adapter.weights}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(modules),
    }
    weights = {name: tensor.cpu().contiguous() for name, tensor in adapter.weights.items()}
    return {
        ADAPTER_WEIGHTS: safetensors.torch.save(weights, metadata={"format": "pt"}),
        ADAPTER_CONFIG: json.dumps(config, indent=2, sort_keys=True).encode(),
    }


def from_files(files: dict[str, bytes]) -> Adapter:
    """The adapter in PEFT's two files."""
    config: dict[str, Any] = json.loads(files[ADAPTER_CONFIG])
    return Adapter(int(config["r"]), float(config["lora_alpha"]), safetensors.torch.load(files[ADAPTER_WEIGHTS]))


def name_A(module: str) -> str:
    return f"{PREFIX}{module}.lora_A.weight"


def name_B(module: str) -> str:
    return f"{PREFIX}{module}.lora_B.weight"


def _parameter(tensor: Tensor, device: torch.device) -> nn.Parameter:
    return nn.Parameter(tensor.to(device, torch.float32, copy=True))


def check_fit(adapter: Adapter, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raises BlobDamaged when the weights of a layer are missing or of the wrong shape. `shapes`: (in, out) by name."""
    for name, (num_in, num_out) in shapes.items():
        lora_A, lora_B = adapter.weights.get(name_A(name)), adapter.weights.get(name_B(name))
        if lora_A is None or lora_B is None:
            raise BlobDamaged(f"The adapter has no weights for the layer '{name}'.")
        if lora_A.shape != (adapter.rank, num_in) or lora_B.shape != (num_out, adapter.rank):
            raise BlobDamaged(f"The adapter's weights for the layer '{name}' have the wrong shape.")
