"""The reference of a preference: the model that the training started from, and what it said of each pair.

It is the same weights with the adapter at its start. Its log-probabilities never change, so a pair's are computed
once, when the pair first comes up, and kept with the training state.
"""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from caesura import faults
from caesura.data.pairs import Pair
from caesura.faults import Point
from caesura.models.digest import digest_weights
from caesura.models.lora import Adapter, Layers, using_adapter

_LOGPROBS, _KEY = "reference_logprobs", "reference_key"


class Reference:
    """`pairs` are all that will ever be asked for; `base_digest` is of the base's weights; `start` None: the base."""

    def __init__(self, layers: Layers, start: Adapter | None, pairs: Sequence[Pair], base_digest: bytes) -> None:
        self._layers = layers
        self._start = start
        self._places = {pair: place for place, pair in enumerate(pairs)}
        self._key = make_key(start, pairs, base_digest)
        self._forget()

    def logprobs(self, pairs: Sequence[Pair], compute: Callable[[Sequence[Pair]], Tensor]) -> Tensor:
        """log π_ref of both sides of each pair, [N, 2] on the CPU, preferred first.

        `compute` gives them for the pairs that have not come up yet; the reference is in use while it does.
        """
        new = [pair for pair in pairs if self._logprobs_N2[self._places[pair], 0].isnan()]
        if new:
            faults.point(Point.REFERENCE_ASKED)
            with torch.no_grad(), using_adapter(self._layers, self._start):
                self._logprobs_N2[self._rows(new)] = compute(new).to("cpu", torch.float32)
        return self._logprobs_N2[self._rows(pairs)]

    def capture(self) -> dict[str, Tensor]:
        return {_LOGPROBS: self._logprobs_N2, _KEY: _to_tensor(self._key)}

    def restore(self, kept: dict[str, Tensor]) -> bool:
        self._forget()
        if not kept:
            return True
        if not kept[_KEY].equal(_to_tensor(self._key)):
            return False
        self._logprobs_N2.copy_(kept[_LOGPROBS])
        return True

    def _forget(self) -> None:
        self._logprobs_N2 = torch.full((len(self._places), 2), torch.nan)

    def _rows(self, pairs: Sequence[Pair]) -> list[int]:
        return [self._places[pair] for pair in pairs]


def make_key(start: Adapter | None, pairs: Sequence[Pair], base_digest: bytes) -> bytes:
    """A digest of all that the log-probabilities are a function of: weights, adapter, tokens and what is compared."""
    digest = hashlib.sha256(base_digest)
    if start is not None:
        digest.update(repr((start.rank, start.alpha)).encode())
        digest.update(digest_weights(sorted(start.weights.items())))
    for pair in pairs:
        digest.update(repr([(side.token_ids, side.loss_mask) for side in pair.sides]).encode())
    return digest.digest()


def _to_tensor(key: bytes) -> Tensor:
    return torch.tensor(list(key), dtype=torch.uint8)
