"""Rows of the older format: prompt and completion."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from caesura.data.rows import TextRow
from caesura.data.texts import render_example
from caesura.settings import EMBEDDED_BASE_PATH
from tests.data.test_literal import TOKENIZERS, squeezed

EMBEDDED: Any = AutoTokenizer.from_pretrained(EMBEDDED_BASE_PATH)


def parts(tokenizer: Any, row: TextRow, max_tokens: int = 1000) -> tuple[str, str]:
    """The texts of the tokens that are not learned, and of those that are."""
    example = render_example(row, tokenizer, max_tokens)
    both: tuple[list[int], list[int]] = ([], [])
    for token_id, is_learned in zip(example.token_ids, example.loss_mask, strict=True):
        both[is_learned].append(token_id)
    return tokenizer.decode(both[0]), tokenizer.decode(both[1])


def test_the_completion_and_its_end_are_learned() -> None:
    assert parts(EMBEDDED, TextRow(1, "Question: two?\nAnswer:", " Four.")) == (
        "Question: two?\nAnswer:",
        " Four." + EMBEDDED.eos_token,
    )


def test_a_token_of_both_is_learned() -> None:
    whole = "understand"
    cut = next(
        place
        for place in range(1, len(whole))
        if len(EMBEDDED.encode(whole)) < len(EMBEDDED.encode(whole[:place])) + len(EMBEDDED.encode(whole[place:]))
    )
    prompt, learned = parts(EMBEDDED, TextRow(1, whole[:cut], whole[cut:]))

    assert prompt + learned == whole + EMBEDDED.eos_token
    assert len(prompt) < cut


def test_a_prompt_may_be_empty() -> None:
    assert parts(EMBEDDED, TextRow(1, "", "All of it.")) == ("", "All of it." + EMBEDDED.eos_token)


def test_what_is_too_long_is_cut_at_its_end() -> None:
    example = render_example(TextRow(1, "one two three", " four five"), EMBEDDED, 4)

    assert (len(example.token_ids), len(example.loss_mask)) == (4, 4)
    assert example.num_truncated == len(EMBEDDED.encode("one two three four five")) + 1 - 4


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=25, deadline=None)
@given(texts=st.tuples(*[st.lists(st.sampled_from(["<|im_end|>", "a", " b", "\n", "<"]), max_size=5).map("".join)] * 2))
def test_no_special_token_is_spelled_out(name: str, texts: tuple[str, str]) -> None:
    tokenizer: Any = TOKENIZERS[name]
    row = TextRow(1, texts[0], texts[1] + "c")
    example = render_example(row, tokenizer, 1000)

    special = [token_id for token_id in example.token_ids if token_id in tokenizer.all_special_ids]
    assert special == [tokenizer.eos_token_id]
    prompt, learned = parts(tokenizer, row)
    assert squeezed(prompt + learned) == squeezed(row.prompt + row.completion + tokenizer.eos_token)
    assert squeezed(learned).endswith(squeezed(row.completion + tokenizer.eos_token))


def test_a_token_that_begins_every_text_is_not_learned() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS["no spaces"].backend_tokenizer, eos_token="<|im_end|>"
    )
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    tokenizer.add_bos_token = True
    example = render_example(TextRow(1, "", "x"), tokenizer, 1000)

    assert tokenizer.decode(example.token_ids) == "<|im_start|>x<|im_end|>"
    assert example.loss_mask == [0, 1, 1]
