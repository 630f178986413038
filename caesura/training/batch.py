"""From rendered rows to tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caesura.data.render import Example
from caesura.models.segments import Segment, Segments

#: Any id would do: padded positions carry no loss, and real tokens never look right.
PAD_ID = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one forward pass, padded on the right: B rows of T tokens, of which K positions are scored."""

    token_ids_BT: Tensor
    #: The positions (of T) at which any row has a target.
    keep_K: Tensor
    #: The token that follows each kept position.
    targets_BK: Tensor
    #: 1 where that token is learned; what others count where they count a little.
    mask_BK: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.token_ids_BT.to(device), self.keep_K.to(device), self.targets_BK.to(device), self.mask_BK.to(device)
        )


@dataclass(frozen=True, slots=True)
class Flat:
    """Sequences of one forward pass one after another in a row of T tokens, without padding; some share a beginning."""

    token_ids_1T: Tensor
    positions_1T: Tensor
    segments: Segments
    #: The positions (of T) that predict a target; one may predict several.
    keep_K: Tensor
    #: The token that each of them predicts.
    targets_K: Tensor


class FlatBuilder:
    """Lays sequences one after another, and notes which of their tokens are predicted."""

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._positions: list[int] = []
        self._segments: list[Segment] = []
        self._keep: list[int] = []
        self._targets: list[int] = []

    def add(self, token_ids: Sequence[int], shared_start: int = 0, num_shared: int = 0) -> int:
        """A sequence, or what follows the first `num_shared` tokens of the one at `shared_start`. Returns its place."""
        start = len(self._token_ids)
        self._token_ids += token_ids
        end = len(self._token_ids)
        self._positions += range(num_shared, num_shared + end - start)
        if end > start:
            self._segments.append(Segment(start, end, shared_start, shared_start + num_shared))
        return start

    def predict(self, places: Iterable[int], targets: Iterable[int]) -> None:
        """The tokens at `places` predict `targets`, one each."""
        self._keep += places
        self._targets += targets

    def build(self, device: torch.device) -> Flat:
        return Flat(
            torch.tensor([self._token_ids], device=device),
            torch.tensor([self._positions], device=device),
            Segments(self._segments, device),
            torch.tensor(self._keep, device=device),
            torch.tensor(self._targets, device=device),
        )


def make_batch(examples: Sequence[Example], others_weight: float = 0.0) -> Batch:
    """The last token of a row is only ever a target, so T is the longest row's tokens less one.

    `others_weight`: what a token counts that is not learned.
    """
    num_tokens = max(len(example.token_ids) for example in examples)
    token_ids_BT = torch.full((len(examples), num_tokens), PAD_ID)
    mask_BT = torch.zeros(len(examples), num_tokens)
    for row, example in enumerate(examples):
        token_ids_BT[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
        mask_T = torch.tensor(example.loss_mask, dtype=torch.float32)
        mask_BT[row, : len(example.loss_mask)] = mask_T + others_weight * (1 - mask_T)
    keep_K = mask_BT[:, 1:].any(0).nonzero().squeeze(1)
    return Batch(token_ids_BT[:, :-1], keep_K, token_ids_BT[:, keep_K + 1], mask_BT[:, keep_K + 1])
