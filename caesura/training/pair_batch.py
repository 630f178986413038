"""From pairs to tensors, in two layouts that compute the same: flat, the shared beginning once, and in padded rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from caesura.data.pairs import Pair
from caesura.training.batch import Flat, FlatBuilder


@dataclass(frozen=True, slots=True)
class FlatPairs:
    """N pairs one after another: the preferred side whole, then what is new in the other."""

    #: Its K targets are the compared tokens, the 2N sides' one after another.
    flat: Flat
    #: Compared tokens of each side: 2N numbers.
    num_compared: list[int]


def make_flat_pairs(pairs: Sequence[Pair], device: torch.device) -> FlatPairs:
    builder = FlatBuilder()
    for pair in pairs:
        # The last token of a side is only ever a target.
        start = builder.add(pair.preferred.token_ids[: max(pair.preferred.num_tokens - 1, pair.num_shared)])
        fork = builder.add(pair.rejected.token_ids[pair.num_shared : -1], start, pair.num_shared)
        for side, offset in zip(pair.sides, (start, fork - pair.num_shared), strict=True):
            compared = _compared(side.loss_mask)
            # What predicts the first token of the branch stands at the end of the shared beginning.
            places = [(start if place <= pair.num_shared else offset) + place - 1 for place in compared]
            builder.predict(places, [side.token_ids[place] for place in compared])
    return FlatPairs(builder.build(device), [side.num_loss_tokens for pair in pairs for side in pair.sides])


def split_pairs(pairs: Sequence[Pair], max_tokens: int, sharing: bool) -> list[list[Pair]]:
    """Cut pairs, ordered by length, into groups of at most `max_tokens` tokens as computed, one pair at least."""
    groups: list[list[Pair]] = []
    for pair in sorted(pairs, key=lambda pair: (pair.num_tokens, pair.line)):
        if groups and _num_computed([*groups[-1], pair], sharing) <= max_tokens:
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return groups


def _num_computed(pairs: list[Pair], sharing: bool) -> int:
    if sharing:
        return sum(pair.num_tokens - pair.num_shared for pair in pairs)
    return 2 * len(pairs) * max(side.num_tokens for pair in pairs for side in pair.sides)


def _compared(loss_mask: list[int]) -> list[int]:
    """The places of the compared tokens; nothing predicts the first one."""
    return [place for place, learned in enumerate(loss_mask) if learned and place]
