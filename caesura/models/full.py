"""All weights of a model, apart from it: of a tuned model that has no adapter, but weights of its own.

They have the model's own names of its parameters; a tensor that two of its parts share is held once, under the first of
its names. Not covered: buffers, which no training changes, and weights that are quantized.
"""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor, nn

from caesura.errors import BlobDamaged
from caesura.jobs import FULL_WEIGHTS
from caesura.models.lora import Adapter, add_low_rank, check_fit, in_out_features
from caesura.models.weight_files import WeightFile


@dataclass(frozen=True, slots=True)
class FullWeights:
    """Weights by the names of the model's parameters, fp32."""

    weights: dict[str, Tensor]


def get_weights(model: nn.Module) -> FullWeights:
    """The model's weights, as copies on the CPU."""
    named = model.named_parameters()
    return FullWeights({name: weight.detach().to("cpu", torch.float32, copy=True) for name, weight in named})


@torch.no_grad()
def set_weights(model: nn.Module, full: FullWeights) -> None:
    """Have the model compute with these weights, each in the dtype that it holds it in.

    Raises BlobDamaged when they do not fit the model; that is then unchanged.
    """
    check_names_and_shapes(full, model)
    for name, parameter in model.named_parameters():
        parameter.copy_(full.weights[name])


def check_names_and_shapes(full: FullWeights, model: nn.Module) -> None:
    """Raises BlobDamaged when a weight is missing, is of the wrong shape, or belongs to nothing in the model."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name in full.weights.keys() ^ shapes.keys():
        lacks = "The base has no weight" if name in full.weights else "The tuned model has no weight"
        raise BlobDamaged(f"{lacks} '{name}', and the other has.")
    for name, shape in shapes.items():
        if full.weights[name].shape != shape:
            raise BlobDamaged(f"The tuned model's weight '{name}' has the wrong shape.")


def merge(full: FullWeights, adapter: Adapter, linears: Mapping[str, nn.Module]) -> FullWeights:
    """The weights with the adapter's part added to those of its layers. `linears`: the model's (`lora.find_linears`).

    Raises BlobDamaged when the adapter does not fit them.
    """
    check_fit(adapter, {name: in_out_features(linear) for name, linear in linears.items()})
    merged = {
        f"{layer}.weight": add_low_rank(full.weights[f"{layer}.weight"], adapter, layer, linears[layer])
        for layer in adapter.modules
    }
    return FullWeights(full.weights | merged)


def to_files(full: FullWeights) -> dict[str, WeightFile]:
    weights = {name: tensor.cpu().contiguous() for name, tensor in full.weights.items()}
    return {FULL_WEIGHTS: WeightFile(weights, {"format": "pt"})}


def from_files(files: Mapping[str, bytes]) -> FullWeights:
    return FullWeights(safetensors.torch.load(files[FULL_WEIGHTS]))
