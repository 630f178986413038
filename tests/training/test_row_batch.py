from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from caesura.data.render import Example
from caesura.training.losses import mean_losses
from caesura.training.row_batch import score, split_rows

CPU = torch.device("cpu")


@pytest.fixture
def model(micro_model: Path) -> Iterator[nn.Module]:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
    with torch.no_grad():
        yield model


#: The first token of the second is marked as learned, but nothing predicts it.
ROWS = [
    Example(1, [5, 6, 7, 8, 2], [0, 0, 1, 0, 1], 0),
    Example(2, [9, 10], [1, 1], 0),
    Example(3, [11, 12, 13, 14, 15, 16, 2], [0, 0, 0, 1, 1, 1, 1], 0),
]


def alone(model: nn.Module, row: Example, others_weight: float) -> list[tuple[float, bool, float]]:
    """Of each token that counts, in a pass of its own row: log p, whether it is the first choice, what it counts."""
    logits_TV = model(torch.tensor([row.token_ids])).logits[0]
    return [
        (logits_TV[place].log_softmax(0)[token].item(), bool(logits_TV[place].argmax() == token), weight)
        for place, (token, learned) in enumerate(zip(row.token_ids[1:], row.loss_mask[1:], strict=True))
        if (weight := 1.0 if learned else others_weight)
    ]


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("others_weight", [0.0, 0.25])
def test_the_tokens_that_count_are_scored_as_each_row_alone_would_have_them(
    model: nn.Module, others_weight: float, flat: bool
) -> None:
    expected = [alone(model, row, others_weight) for row in ROWS]

    scores = score(model, ROWS, others_weight, flat, CPU)

    logprobs, correct, weights = zip(*(token for of_row in expected for token in of_row), strict=True)
    assert scores.logprobs_K.tolist() == pytest.approx(logprobs, abs=1e-5)
    assert scores.correct_K.tolist() == list(correct)
    assert scores.weights_K.tolist() == list(weights)
    assert scores.lengths == [len(of_row) for of_row in expected] == ([2, 1, 4] if not others_weight else [4, 1, 6])
    losses = [-sum(p * w for p, _, w in of_row) / sum(w for _, _, w in of_row) for of_row in expected]
    means = mean_losses(scores.logprobs_K, scores.weights_K, scores.lengths)
    assert means.tolist() == pytest.approx(losses, abs=1e-5)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 100), st.booleans())
def test_every_row_is_in_one_pass_and_no_pass_of_several_exceeds_the_tokens(
    lengths: list[int], max_tokens: int, flat: bool
) -> None:
    rows = [Example(line, [1] * length, [0] * length, 0) for line, length in enumerate(lengths)]

    passes = split_rows(rows, max_tokens, flat)

    assert sorted(row.line for group in passes for row in group) == list(range(len(lengths)))
    for group in passes:
        own = [row.num_tokens for row in group]
        computed = sum(own) if flat else len(own) * max(own)
        assert len(group) == 1 or computed <= max_tokens
    for group, following in pairwise(passes):
        longer = [row.num_tokens for row in (*group, following[0])]
        assert (sum(longer) if flat else len(longer) * max(longer)) > max_tokens
