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
    #: Of the training that made it; nothing is dropped where it is used.
    dropout: float = 0.0

    @property
    def modules(self) -> list[str]:
        """The names of the layers that it is for."""
        return list(dict.fromkeys(name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in self.weights))

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


class Dropout:
    """Sets each number to 0 with the probability `share` and scales up the others (Srivastava et al. 2014). Its draws
    come from `generator` alone, one after another."""

    def __init__(self, share: float, generator: torch.Generator) -> None:
        self._share = share
        self._generator = generator

    def __call__(self, x: Tensor) -> Tensor:
        kept = torch.empty_like(x).bernoulli_(1 - self._share, generator=self._generator)
        return x * kept.div_(1 - self._share)


class LoraLinear(nn.Module):
    """A frozen linear layer and, while they are set, an adapter of before, which is frozen too, and one that learns."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        #: A, B and the scaling.
        self.frozen: tuple[Tensor, Tensor, float] | None = None
        self.lora_A: nn.Parameter | None = None
        self.lora_B: nn.Parameter | None = None
        self.scaling = 0.0
        #: Of what goes into the one that learns.
        self.dropout: Dropout | None = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if self.frozen is not None:
            y = _add_product(y, x, *self.frozen)
        if self.lora_A is None or self.lora_B is None:
            return y
        if self.dropout is not None:
            x = self.dropout(x)
        return _add_product(y, x, self.lora_A, self.lora_B, self.scaling)


def _add_product(y: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    low_rank = F.linear(x, lora_A.to(x.dtype)).flatten(0, -2)
    up = lora_B.to(x.dtype).t()
    return torch.addmm(y.flatten(0, -2), low_rank, up, alpha=scaling).view(y.shape)


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
    layers: dict[str, Wrapper] = {}
    for name, module in find_linears(model).items():
        parent, _, child = name.rpartition(".")
        layers[name] = wrap(name, module)
        setattr(model.get_submodule(parent), child, layers[name])
    return layers


def find_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer but the output head, by its name. Raises InvalidRequest where there is none."""
    get_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = get_head()
    found: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
    if not found:
        raise InvalidRequest("This model has no linear layers to adapt.", param="model", code="unsupported_model")
    return found


def in_out_features(linear: nn.Module) -> tuple[int, int]:
    """Not of the weight's shape where that may be packed, as quantized ones are."""
    if isinstance(linear, Conv1D):
        rows, columns = linear.weight.shape
        return rows, columns
    assert isinstance(linear, nn.Linear)
    return linear.in_features, linear.out_features


def fresh_adapter(layers: Layers, rank: int, alpha: float, seed: int) -> Adapter:
    """The adapter for `layers` that a training begins with, a function of `seed`: A uniform in ±1/√in (as PEFT's), B
    zero."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, layer in layers.items():
        num_in, num_out = in_out_features(layer.base)
        uniform = torch.rand(rank, num_in, generator=generator) * 2 - 1
        weights[name_A(name)] = uniform / math.sqrt(num_in)
        weights[name_B(name)] = torch.zeros(num_out, rank)
    return Adapter(rank, alpha, weights)


def set_adapter(layers: Layers, adapter: Adapter | None) -> None:
    """Use `adapter` (its weights are copied to the layers' device) where it has weights; None: nowhere.

    Raises BlobDamaged when its weights do not fit the layers; these are then unchanged.
    """
    if adapter is not None:
        check_fit(adapter, _shapes(layers))
    for name, layer in layers.items():
        if adapter is None or name_A(name) not in adapter.weights:
            layer.lora_A = layer.lora_B = None
            continue
        device = next(layer.base.parameters()).device
        layer.lora_A = _parameter(adapter.weights[name_A(name)], device)
        layer.lora_B = _parameter(adapter.weights[name_B(name)], device)
        layer.scaling = adapter.scaling


def set_frozen(layers: Layers, adapter: Adapter | None) -> None:
    """Compute with `adapter` too, whatever else is set, and do not train it; None: with none. Raises as
    `set_adapter`."""
    if adapter is not None:
        check_fit(adapter, _shapes(layers))
    for name, layer in layers.items():
        layer.frozen = None
        if adapter is not None and name_A(name) in adapter.weights:
            device = next(layer.base.parameters()).device
            lora_A, lora_B = (adapter.weights[side(name)].to(device, torch.float32) for side in (name_A, name_B))
            layer.frozen = lora_A, lora_B, adapter.scaling


def _shapes(layers: Layers) -> dict[str, tuple[int, int]]:
    return {name: in_out_features(layer.base) for name, layer in layers.items()}


@contextmanager
def using_adapter(layers: Layers, adapter: Adapter | None) -> Generator[None, None, None]:
    """Use another adapter inside the context, without dropout; None: none but a frozen one. Then the present one again,
    untouched.

    Raises as `set_adapter`.
    """
    present = {name: (layer.lora_A, layer.lora_B, layer.scaling, layer.dropout) for name, layer in layers.items()}
    set_adapter(layers, adapter)
    try:
        for layer in layers.values():
            layer.dropout = None
        yield
    finally:
        for name, layer in layers.items():
            layer.lora_A, layer.lora_B, layer.scaling, layer.dropout = present[name]


@contextmanager
def dropping(layers: Layers, share: float, seed: int) -> Generator[None, None, None]:
    """Drop a `share` of what goes into the adapter inside the context; what is dropped is a function of `seed` and of
    the passes made."""
    if share:
        device = next(next(iter(layers.values())).base.parameters()).device
        dropout = Dropout(share, torch.Generator(device).manual_seed(seed))
        for layer in layers.values():
            layer.dropout = dropout
    try:
        yield
    finally:
        for layer in layers.values():
            layer.dropout = None


def get_adapter(layers: Layers, rank: int, alpha: float, dropout: float = 0.0) -> Adapter:
    """The adapter in use, without a frozen one. Its tensors share the layers' memory: clone what must outlive the next
    step."""
    weights: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if layer.lora_A is not None and layer.lora_B is not None:
            weights[name_A(name)] = layer.lora_A.detach()
            weights[name_B(name)] = layer.lora_B.detach()
    return Adapter(rank, alpha, weights, dropout)


def join(first: Adapter, second: Adapter) -> Adapter:
    """One adapter that computes the sum of both: A = [A₁; A₂], B = [s₁·B₁, s₂·B₂], its own scaling 1. Where one of
    them has no weights, they are zeros."""
    parts = (first, second)
    weights: dict[str, Tensor] = {}
    for module in dict.fromkeys(first.modules + second.modules):
        own = next(part for part in parts if name_A(module) in part.weights)
        num_in, num_out = own.weights[name_A(module)].shape[1], own.weights[name_B(module)].shape[0]
        downs = [part.weights.get(name_A(module), torch.zeros(part.rank, num_in)).cpu() for part in parts]
        ups = [part.weights.get(name_B(module), torch.zeros(num_out, part.rank)).cpu() for part in parts]
        weights[name_A(module)] = torch.cat(downs)
        weights[name_B(module)] = torch.cat([up * part.scaling for up, part in zip(ups, parts, strict=True)], dim=1)
    rank = first.rank + second.rank
    return Adapter(rank, float(rank), weights, second.dropout)


def add_low_rank(weight: Tensor, adapter: Adapter, layer: str, linear: nn.Module) -> Tensor:
    """W + (alpha / rank) · B A of the layer `layer`, in fp32; of the shape of `weight`, which is [in, out] in a
    Conv1D."""
    delta = adapter.weights[name_B(layer)].float() @ adapter.weights[name_A(layer)].float()
    delta = delta.t() if isinstance(linear, Conv1D) else delta
    return torch.add(weight.float(), delta, alpha=adapter.scaling)


def to_files(adapter: Adapter, base_name: str) -> dict[str, bytes]:
    """The adapter as PEFT's two files. `base_name` is what PEFT shows as the base."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(adapter.modules),
    }
    weights = {name: tensor.cpu().contiguous() for name, tensor in adapter.weights.items()}
    return {
        ADAPTER_WEIGHTS: safetensors.torch.save(weights, metadata={"format": "pt"}),
        ADAPTER_CONFIG: json.dumps(config, indent=2, sort_keys=True).encode(),
    }


def from_files(files: dict[str, bytes]) -> Adapter:
    """The adapter in PEFT's two files."""
    config: dict[str, Any] = json.loads(files[ADAPTER_CONFIG])
    weights = safetensors.torch.load(files[ADAPTER_WEIGHTS])
    return Adapter(int(config["r"]), float(config["lora_alpha"]), weights, float(config["lora_dropout"]))


def name_A(module: str) -> str:
    return f"{PREFIX}{module}.lora_A.weight"


def name_B(module: str) -> str:
    return f"{PREFIX}{module}.lora_B.weight"


def _parameter(tensor: Tensor, device: torch.device) -> nn.Parameter:
    return nn.Parameter(tensor.to(device, torch.float32, copy=True))


def check_fit(adapter: Adapter, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raises BlobDamaged when a layer's weights are there by half or of the wrong shape, or there is no such layer.
    `shapes`: (in, out) by name."""
    for name in adapter.modules:
        lora_A, lora_B = adapter.weights.get(name_A(name)), adapter.weights.get(name_B(name))
        if name not in shapes:
            raise BlobDamaged(f"The adapter has weights for the layer '{name}', and the base has no such layer.")
        if lora_A is None or lora_B is None:
            raise BlobDamaged(f"The adapter has not all weights for the layer '{name}'.")
        num_in, num_out = shapes[name]
        if lora_A.shape != (adapter.rank, num_in) or lora_B.shape != (num_out, adapter.rank):
            raise BlobDamaged(f"The adapter's weights for the layer '{name}' have the wrong shape.")
