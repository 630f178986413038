from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from caesura.data.pairs import Pair, render_pair
from caesura.data.preferences import PreferenceRow, parse_preferences
from caesura.data.render import Example

USER = {"role": "user", "content": "What is it?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def pair_of(
    tokenizer: PreTrainedTokenizerFast,
    preferred: list[dict[str, Any]],
    rejected: list[dict[str, Any]],
    *before: dict[str, Any],
    max_tokens: int = 4096,
    **keys: Any,
) -> Pair:
    line = {
        "input": {"messages": [*before, USER], **keys},
        "preferred_output": preferred,
        "non_preferred_output": rejected,
    }
    (row,) = parse_preferences([json.dumps(line).encode()])
    assert isinstance(row, PreferenceRow), row
    return render_pair(row, tokenizer, max_tokens)


def compared(side: Example, tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode([id for id, learned in zip(side.token_ids, side.loss_mask, strict=True) if learned])


def text(token_ids: list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode(token_ids)


@pytest.fixture(params=["marked", "plain"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """With `{% generation %}` markers in its template, and without."""
    return request.getfixturevalue(request.param)


def test_the_answers_are_compared_and_the_prompt_is_shared(tokenizer: PreTrainedTokenizerFast) -> None:
    pair = pair_of(tokenizer, said("A cat."), said("No dog."))

    assert compared(pair.preferred, tokenizer).strip().startswith("A cat.")
    assert compared(pair.rejected, tokenizer).strip().startswith("No dog.")
    assert "What is it?" in text(pair.preferred.token_ids[: pair.num_shared], tokenizer)
    assert pair.preferred.token_ids[: pair.num_shared] == pair.rejected.token_ids[: pair.num_shared]
    assert pair.preferred.token_ids[pair.num_shared] != pair.rejected.token_ids[pair.num_shared]


def test_answers_of_the_prompt_are_read_and_not_compared(tokenizer: PreTrainedTokenizerFast) -> None:
    pair = pair_of(tokenizer, said("A cat."), said("No dog."), USER, *said("An animal."))

    assert "An animal." in text(pair.preferred.token_ids, tokenizer)
    assert "animal" not in compared(pair.preferred, tokenizer) + compared(pair.rejected, tokenizer)


def test_of_an_output_with_a_tool_call_all_but_the_tools_answer_is_compared(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    called = [
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "a furry thing"},
        *said("A cat."),
    ]
    pair = pair_of(tokenizer, called, said("No dog."), tools=[LOOK])

    told = compared(pair.preferred, tokenizer)
    assert "look" in told
    assert "A cat." in told
    assert "furry" in text(pair.preferred.token_ids, tokenizer)
    assert "furry" not in told


def test_a_message_of_weight_0_is_not_compared(tokenizer: PreTrainedTokenizerFast) -> None:
    output = [{"role": "assistant", "content": "Let me see.", "weight": 0}, *said("A cat.")]
    pair = pair_of(tokenizer, output, said("No dog."))

    assert "see" in text(pair.preferred.token_ids, tokenizer)
    assert "see" not in compared(pair.preferred, tokenizer)


def test_answers_that_begin_alike_share_their_beginning_too(tokenizer: PreTrainedTokenizerFast) -> None:
    alike, other = (
        pair_of(tokenizer, said("A cat."), said("A dog.")),
        pair_of(tokenizer, said("A cat."), said("No dog.")),
    )

    assert alike.num_shared > other.num_shared
    assert alike.preferred.num_loss_tokens == other.preferred.num_loss_tokens


def test_a_pair_is_cut_at_the_end_and_teaches_while_something_different_is_left(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    whole = pair_of(tokenizer, said("A cat."), said("No dog."))
    room_for_one = whole.num_shared + 1

    cut = pair_of(tokenizer, said("A cat."), said("No dog."), max_tokens=room_for_one)
    silent = pair_of(tokenizer, said("A cat."), said("No dog."), max_tokens=whole.num_shared)

    assert (cut.preferred.num_tokens, cut.rejected.num_tokens) == (room_for_one, room_for_one)
    assert cut.num_truncated == max(side.num_tokens for side in whole.sides) - room_for_one
    assert (whole.teaches, cut.teaches, silent.teaches) == (True, True, False)


def test_a_pair_counts_the_shared_beginning_with_both_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    pair = pair_of(tokenizer, said("A cat."), said("No dog."))

    assert pair.num_tokens == len(pair.preferred.token_ids) + len(pair.rejected.token_ids)
