"""Logits → tokens. Each row is drawn by its own rules and its own numbers; no row sees another. B: rows, V: vocabulary.

A draw inverts the distribution at one number between 0 and 1, which is a hash of the sample's seed, its index and the
token's place. So it depends on nothing that was drawn before, and there is no state to keep.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from caesura.errors import CaesuraError

#: Below this a temperature is 0: the likeliest token is all but certain, and dividing by it overflows.
MIN_TEMPERATURE = 1e-5


class Mask(Protocol):
    """What holds the tokens to a form."""

    def mask(self, logits_V: Tensor) -> Tensor:
        """The logits, at minus infinity where a token cannot come next. Raises CaesuraError where it fails."""
        ...


@dataclass(slots=True)
class Draw:
    """How the tokens of one sample are drawn, and what was drawn so far. The values are those of OpenAI's API."""

    seed: int
    #: Of the samples with this seed.
    index: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict[int, float])
    #: How many likely tokens are told beside each drawn one; None: not even its own log-probability.
    top_logprobs: int | None = None
    mask: Mask | None = None
    #: What the mask raised: nothing more can be drawn.
    fault: CaesuraError | None = None
    num_drawn: int = 0
    counts: Counter[int] = field(default_factory=Counter[int])

    @property
    def is_greedy(self) -> bool:
        return self.temperature < MIN_TEMPERATURE

    def next_uniform(self) -> float:
        """In [0, 1), with 53 bits."""
        place = struct.pack("<qQQ", self.seed, self.index, self.num_drawn)
        return (int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "little") >> 11) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Drawn:
    token_id: int
    #: The log of its probability by the model alone: before temperature, penalties and masks. None: not asked for.
    logprob: float | None = None
    #: The likeliest tokens with theirs.
    top: tuple[tuple[int, float], ...] = ()


def draw(logits_BV: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    """A token for each row, by its own `Draw`, which takes note of it. `logits_BV` is float32."""
    adjusted_BV = _adjust(logits_BV, draws)
    rows = [row for row, own in enumerate(draws) if not own.is_greedy]
    token_ids: list[int] = adjusted_BV.argmax(-1).tolist() if len(rows) < len(draws) else [0] * len(draws)
    if rows:
        sampled_BV = adjusted_BV if len(rows) == len(draws) else adjusted_BV[rows]
        for row, token_id in zip(rows, _sample(sampled_BV, [draws[row] for row in rows]), strict=True):
            token_ids[row] = token_id
    for token_id, own in zip(token_ids, draws, strict=True):
        own.num_drawn += 1
        if own.frequency_penalty or own.presence_penalty:
            own.counts[token_id] += 1
    return _with_logprobs(logits_BV, token_ids, [own.top_logprobs for own in draws])


def top_logprobs(logits_BV: Tensor, token_ids: Sequence[int], num_top: int) -> list[Drawn]:
    """The tokens, which came in these places, with their log-probabilities."""
    return _with_logprobs(logits_BV, list(token_ids), [num_top] * len(token_ids))


def _adjust(logits_BV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The logits with penalties, biases and masks; the same tensor where there are none."""
    adjusted_BV = logits_BV
    for row, own in enumerate(draws):
        changes = dict(own.logit_bias)
        for token_id, count in own.counts.items():
            penalty = own.frequency_penalty * count + own.presence_penalty
            changes[token_id] = changes.get(token_id, 0.0) - penalty
        if not changes and own.mask is None:
            continue
        if adjusted_BV is logits_BV:
            adjusted_BV = logits_BV.clone()
        if changes:
            token_ids = torch.tensor(list(changes), device=logits_BV.device)
            adjusted_BV[row, token_ids] += torch.tensor(list(changes.values()), device=logits_BV.device)
        if own.mask is not None:
            try:
                adjusted_BV[row] = own.mask.mask(adjusted_BV[row])
            except CaesuraError as fault:  # the row's own; the others are drawn all the same
                own.fault = fault
    return adjusted_BV


def _sample(logits_BV: Tensor, draws: Sequence[Draw]) -> list[int]:
    device = logits_BV.device
    if any(own.temperature != 1 for own in draws):
        logits_BV = logits_BV / torch.tensor([[own.temperature] for own in draws], device=device)
    probs_BV = logits_BV.softmax(-1)
    uniforms_B1 = torch.tensor([[own.next_uniform()] for own in draws], dtype=torch.float64, device=device)
    return _invert(_keep_top_p(probs_BV, draws), uniforms_B1).tolist()


def _keep_top_p(probs_BV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The probabilities, at 0 where `top_p` drops the token. They stay in the vocabulary's order: what a row draws must
    not hang on whether another one needs to be sorted."""
    if all(own.top_p >= 1 for own in draws):
        return probs_BV
    top_p_B1 = torch.tensor([[own.top_p] for own in draws], device=probs_BV.device)
    sorted_BV, token_ids_BV = probs_BV.sort(descending=True, stable=True)
    # A token is dropped when the likelier ones reach top_p without it; the likeliest is always in.
    is_dropped_BV = (sorted_BV.cumsum(-1) - sorted_BV >= top_p_B1) & (top_p_B1 < 1)
    is_dropped_BV[:, 0] = False
    return probs_BV.masked_fill(is_dropped_BV.scatter(1, token_ids_BV, is_dropped_BV), 0)


def _invert(weights_BV: Tensor, uniforms_B1: Tensor) -> Tensor:
    """The places at which the cumulated weights pass these shares of their sums, [B]."""
    cumulated_BV = weights_BV.cumsum(-1, dtype=torch.float64)
    targets_B1 = uniforms_B1 * cumulated_BV[:, -1:]
    places_B1 = torch.searchsorted(cumulated_BV, targets_B1, right=True)
    # A product may be rounded up to the whole sum, which nothing passes: it means the last place with any weight.
    last_B1 = torch.searchsorted(cumulated_BV, cumulated_BV[:, -1:].contiguous())
    return places_B1.minimum(last_B1).squeeze(1)


def _with_logprobs(logits_BV: Tensor, token_ids: list[int], nums_top: Sequence[int | None]) -> list[Drawn]:
    rows = [row for row, num_top in enumerate(nums_top) if num_top is not None]
    drawn = [Drawn(token_id) for token_id in token_ids]
    if not rows:
        return drawn
    logprobs_BV = (logits_BV if len(rows) == len(token_ids) else logits_BV[rows]).log_softmax(-1)
    own_B = logprobs_BV.gather(1, torch.tensor([[token_ids[row]] for row in rows], device=logits_BV.device)).squeeze(1)
    max_top = max(num_top or 0 for num_top in nums_top)
    tops = _likeliest(logprobs_BV, max_top) if max_top else [()] * len(rows)
    for row, own, top in zip(rows, own_B.tolist(), tops, strict=True):
        drawn[row] = Drawn(token_ids[row], own, top[: nums_top[row]])
    return drawn


def _likeliest(logprobs_BV: Tensor, num_top: int) -> list[tuple[tuple[int, float], ...]]:
    values, token_ids = logprobs_BV.topk(min(num_top, logprobs_BV.shape[1]), dim=-1)
    return [tuple(zip(*row, strict=True)) for row in zip(token_ids.tolist(), values.tolist(), strict=True)]
