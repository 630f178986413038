"""From pairs to tensors, in two layouts that compute the same: flat, the shared beginning once, and in padded rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from caesura.data.pairs import Pair
from caesura.models.segments import Segment, Segments
from caesura.training.batch import Flat


@dataclass(frozen=True, slots=True)
class FlatPairs:
    """N pairs one after another: the preferred side whole, then what is new in the other."""

    #: Its K targets are the compared tokens, the 2N sides' one after another.
    flat: Flat
    #: Compared tokens of each side: 2N numbers.
    num_compared: list[int]


def make_flat_pairs(pairs: Sequence[Pair], device: torch.device) -> FlatPairs:
    token_ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    keep: list[int] = []
    targets: list[int] = []
    for pair in pairs:
        # The last token of a side is only ever a target.
        trunk = pair.preferred.token_ids[: max(pair.preferred.num_tokens - 1, pair.num_shared)]
        branch = pair.rejected.token_ids[pair.num_shared : -1]
        start, fork = len(token_ids), len(token_ids) + len(trunk)
        token_ids += [*trunk, *branch]
        end = len(token_ids)
        positions += [*range(fork - start), *range(pair.num_shared, pair.num_shared + end - fork)]
        segments.append(Segment(start, fork))
        if end > fork:
            segments.append(Segment(fork, end, start, start + pair.num_shared))
        for side, offset in zip(pair.sides, (start, fork - pair.num_shared), strict=True):
            compared = _compared(side.loss_mask)
            # What predicts the first token of the branch stands at the end of the shared beginning.
            keep += [(start if place <= pair.num_shared else offset) + place - 1 for place in compared]
            targets += [side.token_ids[place] for place in compared]
    flat = Flat(
        torch.tensor([token_ids], device=device),
        torch.tensor([positions], device=device),
        Segments(segments, device),
        torch.tensor(keep, device=device),
        torch.tensor(targets, device=device),
    )
    return FlatPairs(flat, [side.num_loss_tokens for pair in pairs for side in pair.sides])


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
