from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from caesura.training.group_batch import Answers, own_logprobs, split_answers
from caesura.training.rollouts import Rollout

CPU = torch.device("cpu")


@pytest.fixture
def model(micro_model: Path) -> Iterator[nn.Module]:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
    with torch.no_grad():
        yield model


def answer(prompt_ids: list[int], answer_ids: list[int], index: int, is_own: list[int] | None = None) -> Rollout:
    own = is_own or [1] * len(answer_ids)
    return Rollout(1, index, prompt_ids, answer_ids, [0.0] * len(answer_ids), own, "stop", [])


BATCH = [
    Answers([answer([5, 6, 7], [8, 9, 10, 2], 0), answer([5, 6, 7], [11], 1)], [1.0, -1.0]),
    # The tokens in the middle are a tool's.
    Answers([answer([12], [13, 14, 15, 16, 2], 0, [1, 1, 0, 0, 1]), answer([12], [13, 2], 1)], [0.5, -0.5]),
]


def logprobs_alone(model: nn.Module, rollout: Rollout) -> list[float]:
    """log p of each own token of an answer that is computed by itself."""
    token_ids = [*rollout.prompt_ids, *rollout.answer_ids]
    logprobs_TV = model(torch.tensor([token_ids])).logits[0].log_softmax(-1)
    start = len(rollout.prompt_ids)
    return [
        logprobs_TV[start + place - 1, token_id].item()
        for place, (token_id, is_own) in enumerate(zip(rollout.answer_ids, rollout.is_own, strict=True))
        if is_own
    ]


@pytest.mark.parametrize("sharing", [True, False])
def test_own_tokens_have_the_log_probabilities_that_each_answer_gives_them_alone(
    model: nn.Module, sharing: bool
) -> None:
    expected = [one for answers in BATCH for rollout in answers.rollouts for one in logprobs_alone(model, rollout)]

    logprobs_K = own_logprobs(model, BATCH, sharing, CPU)

    assert logprobs_K.tolist() == pytest.approx(expected, abs=1e-5)
    assert len(expected) == sum(answers.num_own_tokens for answers in BATCH) == 10


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 8, 12, 10_000])
def test_passes_hold_every_answer_once_with_its_advantage_and_no_more_tokens_than_allowed(
    sharing: bool, max_tokens: int
) -> None:
    passes = split_answers(BATCH, max_tokens, sharing)

    found = sorted(
        (rollout.prompt_ids, rollout.answer_ids, advantage)
        for batch in passes
        for answers in batch
        for rollout, advantage in zip(answers.rollouts, answers.advantages, strict=True)
    )
    assert found == sorted(
        (rollout.prompt_ids, rollout.answer_ids, advantage)
        for answers in BATCH
        for rollout, advantage in zip(answers.rollouts, answers.advantages, strict=True)
    )
    if max_tokens == 10_000:
        assert len(passes) == 1
    for batch in passes:
        rollouts = [rollout for answers in batch for rollout in answers.rollouts]
        computed = (
            sum(len(answers.prompt_ids) + sum(len(one.answer_ids) for one in answers.rollouts) for answers in batch)
            if sharing
            else len(rollouts) * max(len(one.prompt_ids) + len(one.answer_ids) for one in rollouts)
        )
        assert len(rollouts) == 1 or computed <= max_tokens
