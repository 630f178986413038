"""The layers of Llama and its kin, taken out of the model that `transformers` loaded. C: width, O: output features."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caesura.models.decoding.adapters import Names


@dataclass(frozen=True, slots=True)
class Family:
    """How a family's layers differ from Llama's."""

    norms_queries_and_keys: bool = False
    #: A norm after the attention and after the MLP, beside the one before each.
    norms_what_is_added: bool = False
    #: A norm's weights are kept around 0, not around 1.
    norm_offset: float = 0.0
    norm_eps_name: str = "variance_epsilon"
    #: Each kind of layer has its own rotations.
    rotates_by_kind: bool = False
    #: The layers' window stands in the config, and not in each of them.
    has_one_window: bool = False


#: By `model_type`.
FAMILIES = {
    "llama": Family(),
    "mistral": Family(has_one_window=True),
    "qwen2": Family(),
    "qwen3": Family(norms_queries_and_keys=True),
    "gemma3_text": Family(
        norms_queries_and_keys=True,
        norms_what_is_added=True,
        norm_offset=1.0,
        norm_eps_name="eps",
        rotates_by_kind=True,
    ),
}
#: Settings that make the layers others than these.
_UNUSUAL = (
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "quantization_config",
    "use_bidirectional_attention",
)


#: Rotations that are a function of a token's position alone; others change with the length of what is computed.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def is_fusible(model: nn.Module) -> bool:
    """Whether the model's layers are of a known family."""
    config: Any = model.config
    if config.model_type not in FAMILIES or any(getattr(config, name, None) for name in _UNUSUAL):
        return False
    rope = config.rope_parameters
    by_kind = rope.values() if FAMILIES[config.model_type].rotates_by_kind else [rope]
    return all(of_kind["rope_type"] in _ROPE_TYPES for of_kind in by_kind)


class Linear:
    """A matrix; on a CPU packed for its kernels, which is up to twice as fast (docs/benchmarks.md)."""

    def __init__(self, weight_OC: Tensor, bias_O: Tensor | None) -> None:
        self._is_packed = _can_pack(weight_OC)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OC) if self._is_packed else weight_OC
        self._bias_O = bias_O

    def __call__(self, x_MC: Tensor) -> Tensor:
        if self._is_packed:
            return torch.ops.mkldnn._linear_pointwise(x_MC, self._weight, self._bias_O, "none", [], "")
        return F.linear(x_MC, self._weight, self._bias_O)

    def add_to(self, y_MO: Tensor, x_MC: Tensor) -> Tensor:
        """The sum of `y_MO` and what the matrix makes of `x_MC`."""
        if self._is_packed:
            return torch.ops.mkldnn._linear_pointwise.binary(x_MC, y_MO, self._weight, self._bias_O, "add")
        return y_MO + F.linear(x_MC, self._weight, self._bias_O)


def _can_pack(weight_OC: Tensor) -> bool:
    # oneDNN refuses bfloat16 on a processor that has no instructions for it (one with AVX2 alone, say).
    if weight_OC.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight_OC.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Norm:
    """Root mean square norm (Zhang and Sennrich 2019, arXiv:1910.07467), in float32."""

    def __init__(self, weight_C: Tensor, eps: float) -> None:
        self._weight_C = weight_C.float()
        self._eps = torch.tensor(eps, device=weight_C.device)
        self._scale = 1 / len(weight_C)

    def __call__(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = torch.addcmul(self._eps, norm, norm, value=self._scale).rsqrt_()
        normed = inverse.mul(x).mul_(self._weight_C)
        return normed if x.dtype == torch.float32 else normed.to(x.dtype)


@dataclass(frozen=True, slots=True)
class Projection:
    """Linear layers with the same input as one: their outputs stand side by side."""

    linear: Linear
    names: Names


@dataclass(frozen=True, slots=True)
class Layer:
    #: What its rotations go by.
    kind: str
    #: It sees so many last tokens; None: all.
    window: int | None
    #: Of the products of queries and keys.
    scaling: float
    norm: Norm
    qkv: Projection
    query_norm: Norm | None
    key_norm: Norm | None
    output: Projection
    attended_norm: Norm | None
    mlp_norm: Norm
    gate_up: Projection
    act: Callable[[Tensor], Tensor]
    down: Projection
    made_norm: Norm | None


class Taker:
    """Takes the weights out of a model: what was taken is not there any more, so that no weight is there twice."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._config = model.config
        self._family = FAMILIES[model.config.model_type]
        #: Those taken so far, with the (in, out) of their modules' weights.
        self.projections: dict[Names, list[tuple[int, int]]] = {}

    def layers(self) -> list[Layer]:
        return [self._layer(f"model.layers.{index}", layer) for index, layer in enumerate(self._model.model.layers)]

    def norm(self, module: Any) -> Norm:
        return Norm(module.weight.detach() + self._family.norm_offset, getattr(module, self._family.norm_eps_name))

    def _layer(self, prefix: str, layer: Any) -> Layer:
        family, attention, mlp = self._family, layer.self_attn, layer.mlp
        wraps, norms = family.norms_what_is_added, family.norms_queries_and_keys
        return Layer(
            kind=layer.self_attn.layer_type if family.rotates_by_kind else "",
            window=self._config.sliding_window if family.has_one_window else _window(attention),
            scaling=attention.scaling,
            norm=self.norm(layer.input_layernorm),
            qkv=self._fuse(f"{prefix}.self_attn", attention, "q_proj", "k_proj", "v_proj"),
            query_norm=self.norm(attention.q_norm) if norms else None,
            key_norm=self.norm(attention.k_norm) if norms else None,
            output=self._fuse(f"{prefix}.self_attn", attention, "o_proj"),
            attended_norm=self.norm(layer.post_attention_layernorm) if wraps else None,
            mlp_norm=self.norm(layer.pre_feedforward_layernorm if wraps else layer.post_attention_layernorm),
            gate_up=self._fuse(f"{prefix}.mlp", mlp, "gate_proj", "up_proj"),
            act=mlp.act_fn.forward,
            down=self._fuse(f"{prefix}.mlp", mlp, "down_proj"),
            made_norm=self.norm(layer.post_feedforward_layernorm) if wraps else None,
        )

    def _fuse(self, prefix: str, module: Any, *children: str) -> Projection:
        linears = [getattr(module, child) for child in children]
        names = tuple(f"{prefix}.{child}" for child in children)
        self.projections[names] = [(linear.in_features, linear.out_features) for linear in linears]
        biases = [linear.bias for linear in linears if linear.bias is not None]
        weight_OC = torch.cat([linear.weight.detach() for linear in linears])
        for linear in linears:
            linear.weight = None
        return Projection(Linear(weight_OC, torch.cat(biases) if biases else None), names)


def _window(attention: Any) -> int | None:
    """Llama's attention knows none."""
    return getattr(attention, "sliding_window", None)
