"""Attention over a flat axis: many sequences one after another in one row, without padding, some of which share their
beginning.

    prompt ┬ preferred answer            tokens     prompt preferred │ rejected │ prompt preferred │ rejected …
           └ rejected answer             segments   ──── trunk ──────  ─ branch ─

A branch sees the beginning of its trunk and itself, as it would in a row of its own, so the shared beginning is
computed once. Everything outside attention looks at one token at a time, and positions are given to it.
"""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
#: Segments are attended to together while they compute at most so many times the scores that are theirs.
MAX_PADDING = 1.5


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
    def num_shared(self) -> int:
        return self.shared_end - self.shared_start

    @property
    def num_keys(self) -> int:
        return self.num_shared + self.num_queries


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Segments of about one size, attended to together: N rows of Q queries and K keys, padded on the right."""

    #: Places on the flat axis; padding repeats one of the segment's.
    queries_NQ: Tensor
    keys_NK: Tensor
    #: The place of each row's first query among its keys; one number where all are the same.
    offsets_N: Tensor

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to the scores, [N or 1, Q, K]: as good as -inf where a query must not look.

        A query looks back only, so that it never meets the padding behind its row's keys.
        """
        places_Q = torch.arange(self.queries_NQ.shape[1], device=self.queries_NQ.device)
        places_K = torch.arange(self.keys_NK.shape[1], device=self.queries_NQ.device)
        distance_NQK = (self.offsets_N[:, None, None] + places_Q[:, None]) - places_K
        hidden_NQK = distance_NQK < 0
        if window is not None:
            hidden_NQK |= distance_NQK >= window
        # Not -inf: a padded query that sees nothing would be no number, and its gradient no number either.
        hidden = torch.finfo(dtype).min
        return torch.zeros(hidden_NQK.shape, dtype=dtype, device=hidden_NQK.device).masked_fill(hidden_NQK, hidden)


class Segments:
    """Segments that cover the flat axis in order, as tensors of a device, and the masks that layers have asked for."""

    def __init__(self, items: Sequence[Segment], device: torch.device) -> None:
        buckets = _sort_into_buckets(items)
        self.buckets = [_make_bucket(bucket, device) for bucket in buckets]
        #: For each place of the flat axis, where it stands in the buckets' padded queries one after another.
        self.places_T = torch.tensor(_find_places(buckets), device=device)
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def mask(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """The mask of a bucket, made once for all layers."""
        if (index, window) not in self._masks:
            self._masks[index, window] = self.buckets[index].mask(window, dtype)
        return self._masks[index, window]


def _sort_into_buckets(items: Sequence[Segment]) -> list[list[Segment]]:
    """Segments of about one size together, whole ones apart from branches: as few as keep the padding small."""
    buckets: list[list[Segment]] = []
    for segment in sorted(items, key=lambda item: (item.num_shared > 0, item.num_keys, item.num_queries, item.start)):
        together = [*buckets[-1], segment] if buckets else [segment]
        is_alike = (together[0].num_shared > 0) == (segment.num_shared > 0)
        if buckets and is_alike and _num_scores(together) <= MAX_PADDING * sum(map(_num_own_scores, together)):
            buckets[-1].append(segment)
        else:
            buckets.append([segment])
    return buckets


def _num_own_scores(segment: Segment) -> int:
    return segment.num_queries * segment.num_keys


def _num_scores(bucket: list[Segment]) -> int:
    return len(bucket) * max(item.num_queries for item in bucket) * max(item.num_keys for item in bucket)


def _make_bucket(bucket: list[Segment], device: torch.device) -> _Bucket:
    num_queries, num_keys = max(item.num_queries for item in bucket), max(item.num_keys for item in bucket)
    queries = [[*range(item.start, item.end)] for item in bucket]
    keys = [[*range(item.shared_start, item.shared_end), *range(item.start, item.end)] for item in bucket]
    offsets = [item.num_shared for item in bucket]
    return _Bucket(
        torch.tensor([row + row[:1] * (num_queries - len(row)) for row in queries], device=device),
        torch.tensor([row + row[-1:] * (num_keys - len(row)) for row in keys], device=device),
        torch.tensor(offsets[:1] if len(set(offsets)) == 1 else offsets, device=device),
    )


def _find_places(buckets: list[list[Segment]]) -> list[int]:
    places: dict[int, int] = {}
    begins = 0
    for bucket in buckets:
        width = max(item.num_queries for item in bucket)
        for item in bucket:
            places |= {token: begins + token - item.start for token in range(item.start, item.end)}
            begins += width
    return [places[token] for token in range(len(places))]


def takes_segments(model: nn.Module) -> bool:
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
    query_HTD = query_BHTD[0] * scaling
    key_HTD, value_HTD = (states.repeat_interleave(groups, 0) for states in (key_BHTD[0], value_BHTD[0]))
    parts: list[Tensor] = []
    for index, bucket in enumerate(segments.buckets):
        query_HNQD = _select(query_HTD, bucket.queries_NQ)
        key_HNKD, value_HNKD = _select(key_HTD, bucket.keys_NK), _select(value_HTD, bucket.keys_NK)
        mask_NQK = segments.mask(index, sliding_window, query_HTD.dtype)
        if softcap is not None or (query_HTD.device.type == "cpu" and mask_NQK.shape[2] <= MAX_PLAIN_TOKENS):
            mixed_HNQD = _plain(query_HNQD, key_HNKD, value_HNKD, mask_NQK, softcap)
        else:
            mixed_HNQD = F.scaled_dot_product_attention(
                query_HNQD, key_HNKD, value_HNKD, mask_NQK.expand(query_HNQD.shape[0], -1, -1, -1), scale=1.0
            )
        parts.append(mixed_HNQD.flatten(1, 2))
    return torch.cat(parts, dim=1).index_select(1, segments.places_T).transpose(0, 1).unsqueeze(0), None


def _select(states_HTD: Tensor, places_NS: Tensor) -> Tensor:
    """The states at these places: [H, N, S, D]."""
    num_heads, _, width = states_HTD.shape
    return states_HTD.index_select(1, places_NS.flatten()).view(num_heads, *places_NS.shape, width)


def _plain(query_HNQD: Tensor, key_HNKD: Tensor, value_HNKD: Tensor, mask_NQK: Tensor, softcap: float | None) -> Tensor:
    scores_HNQK = query_HNQD @ key_HNKD.transpose(2, 3)
    if softcap is not None:
        scores_HNQK = torch.tanh(scores_HNQK / softcap) * softcap
    weights_HNQK = F.softmax(scores_HNQK.add_(mask_NQK), dim=-1, dtype=torch.float32).to(query_HNQD.dtype)
    return weights_HNQK @ value_HNKD


AttentionInterface.register(SEGMENTED, _attend)
