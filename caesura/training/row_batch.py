"""From rows to what a model says of the tokens they teach, in two layouts that compute the same: flat, and padded."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from caesura.data.render import Example
from caesura.training.batch import Flat, FlatBuilder, make_batch
from caesura.training.logprobs import flat_logprobs, token_logprobs


@dataclass(frozen=True, slots=True)
class Scores:
    """The K tokens that some rows teach, row by row."""

    logprobs_K: Tensor
    #: Whether each is the model's first choice.
    correct_K: Tensor
    #: What each counts: 1 where it is learned.
    weights_K: Tensor
    #: The tokens of each row.
    lengths: list[int]


def score(model: nn.Module, rows: Sequence[Example], others_weight: float, flat: bool, device: torch.device) -> Scores:
    """`others_weight`: what a token counts that is not learned; where it is 0, none of them is looked at."""
    if flat:
        weights = [_weights(row, others_weight) for row in rows]
        logprobs_K, correct_K = flat_logprobs(model, make_flat_rows(rows, weights, device))
        counted = [[weight for weight in of_row if weight] for of_row in weights]
        weights_K = torch.tensor([weight for of_row in counted for weight in of_row], device=device)
        return Scores(logprobs_K, correct_K, weights_K, [len(of_row) for of_row in counted])
    batch = make_batch(rows, others_weight).to(device)
    logprobs_BK, correct_BK = token_logprobs(model, batch)
    counts_BK = batch.mask_BK > 0
    return Scores(logprobs_BK[counts_BK], correct_BK[counts_BK], batch.mask_BK[counts_BK], counts_BK.sum(1).tolist())


def make_flat_rows(rows: Sequence[Example], weights: Sequence[list[float]], device: torch.device) -> Flat:
    """Its targets are the tokens whose weight is not 0."""
    builder = FlatBuilder()
    for row, of_row in zip(rows, weights, strict=True):
        start = builder.add(row.token_ids[:-1])  # the last one is only ever a target
        places = [place for place, weight in enumerate(of_row) if weight]
        builder.predict([start + place for place in places], [row.token_ids[place + 1] for place in places])
    return builder.build(device)


def split_rows(rows: Sequence[Example], max_tokens: int, flat: bool) -> list[list[Example]]:
    """Cut rows, ordered by length, into groups of at most `max_tokens` tokens as computed, one row at least."""
    groups: list[list[Example]] = []
    for row in sorted(rows, key=lambda row: (row.num_tokens, row.line)):
        if groups and _num_computed([*groups[-1], row], flat) <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _num_computed(rows: list[Example], flat: bool) -> int:
    lengths = [row.num_tokens for row in rows]
    return sum(lengths) if flat else len(rows) * max(lengths)


def _weights(row: Example, others_weight: float) -> list[float]:
    """What each token of the row counts but the first, which nothing predicts."""
    return [1.0 if learned else others_weight for learned in row.loss_mask[1:]]
