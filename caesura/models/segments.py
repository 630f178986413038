"""Attention over a flat axis: many sequences one after another in one row, without padding, some of which share their
beginning.

    prompt ┬ preferred answer            tokens     prompt preferred │ rejected │ prompt preferred │ rejected …
           └ rejected answer             segments   ──── trunk ──────  ─ branch ─

A branch sees the beginning of its trunk and itself, as it would in a row of its own, so the shared beginning is
computed once. Everything outside attention looks at one token at a time, and positions are given to it.
"""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

#: The name under which `transformers` finds this attention.
SEGMENTED = "caesura_segmented"
#: Architectures whose layers mix tokens by attention alone and say all of it to an attention function. A test holds
#: each to rows of their own; any other goes without sharing.
FAMILIES = frozenset(
    {"gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"}
)
#: On a CPU, up to so many keys are attended to by plain matrix products (as in training/logprobs.py).
MAX_PLAIN_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens from `start` to before `end` of the flat axis, behind those from `shared_start` to before `shared_end`."""

    start: int
    end: int
    shared_start: int = 0
    shared_end: int = 0

    @property
    def num_queries(self) -> int:
        return self.end - self.start

    @property
    def num_keys(self) -> int:
        return self.shared_end - self.shared_start + self.num_queries

    def keys(self, states_HTD: Tensor) -> Tensor:
        """The keys or values of all that the segment sees."""
        own = states_HTD[:, self.start : self.end]
        if self.shared_start == self.shared_end:
            return own
        return torch.cat((states_HTD[:, self.shared_start : self.shared_end], own), dim=1)


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments that cover the flat axis in order, and the masks that their layers have asked for."""

    items: tuple[Segment, ...]
    _masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict[tuple[int, int, int | None], Tensor])

    def mask(self, segment: Segment, window: int | None, like: Tensor) -> Tensor:
        """What is added to the scores [queries, keys]: -inf where a query must not look."""
        shape = (segment.num_queries, segment.num_keys, window)
        if shape not in self._masks:
            query = torch.arange(segment.num_keys - segment.num_queries, segment.num_keys, device=like.device)
            distance_QK = query.unsqueeze(1) - torch.arange(segment.num_keys, device=like.device)
            hidden_QK = distance_QK < 0 if window is None else (distance_QK < 0) | (distance_QK >= window)
            self._masks[shape] = torch.zeros_like(hidden_QK, dtype=like.dtype).masked_fill(hidden_QK, -torch.inf)
        return self._masks[shape]


def can_share(model: nn.Module) -> bool:
    """Whether the model's layers can be computed over segments."""
    config: Any = model.config
    return config.model_type in FAMILIES


def _attend(
    module: Any,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    _mask: Tensor | None,
    *,
    segments: Segments,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """An attention function of `transformers`: the batch is one flat row; returns [1, T, H, D]."""
    groups: int = module.num_key_value_groups
    query_HTD = query_BHTD[0]
    key_HTD, value_HTD = (states.repeat_interleave(groups, 0) for states in (key_BHTD[0], value_BHTD[0]))
    parts: list[Tensor] = []
    for segment in segments.items:
        keys_HKD, values_HKD = segment.keys(key_HTD), segment.keys(value_HTD)
        queries_HQD = query_HTD[:, segment.start : segment.end]
        if softcap is not None or (query_HTD.device.type == "cpu" and segment.num_keys <= MAX_PLAIN_TOKENS):
            mask_QK = segments.mask(segment, sliding_window, query_HTD)
            parts.append(_plain(queries_HQD, keys_HKD, values_HKD, mask_QK, scaling, softcap))
        else:
            is_square = segment.num_keys == segment.num_queries
            is_causal = is_square and (sliding_window is None or segment.num_keys <= sliding_window)
            mask_QK = None if is_causal else segments.mask(segment, sliding_window, query_HTD)
            parts.append(_fused(queries_HQD, keys_HKD, values_HKD, mask_QK, scaling))
    return torch.cat(parts, dim=1).transpose(0, 1).unsqueeze(0), None


def _plain(
    query_HQD: Tensor, key_HKD: Tensor, value_HKD: Tensor, mask_QK: Tensor, scaling: float, softcap: float | None
) -> Tensor:
    key_HDK = key_HKD.transpose(1, 2)
    if softcap is None:
        scores_HQK = torch.baddbmm(mask_QK.unsqueeze(0), query_HQD, key_HDK, alpha=scaling)
    else:
        scores_HQK = torch.tanh(torch.bmm(query_HQD, key_HDK) * (scaling / softcap)) * softcap + mask_QK
    weights_HQK = F.softmax(scores_HQK, dim=-1, dtype=torch.float32).to(query_HQD.dtype)
    return torch.bmm(weights_HQK, value_HKD)


def _fused(query_HQD: Tensor, key_HKD: Tensor, value_HKD: Tensor, mask_QK: Tensor | None, scaling: float) -> Tensor:
    """Without a mask: causal."""
    query, key, value = (states.unsqueeze(0) for states in (query_HQD, key_HKD, value_HKD))
    is_causal = mask_QK is None
    return F.scaled_dot_product_attention(query, key, value, mask_QK, is_causal=is_causal, scale=scaling)[0]


AttentionInterface.register(SEGMENTED, _attend)
