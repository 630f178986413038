"""What is learned of a row through the chat templates of the well-known families, against masks written by hand.

The templates (templates/) do what those that come with the models do: their markers, where they put the system's
words and the tools, what they change in earlier turns, what they refuse. The prose in them is shorter.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from caesura.data.render import Example, pin_date, render_row
from caesura.data.rows import Row
from caesura.errors import InvalidData

Message = dict[str, Any]
#: From each family to the special tokens that its template writes.
SPECIALS = {
    "qwen3": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "gemma3": ["<bos>", "<start_of_turn>", "<end_of_turn>"],
    "mistral": ["<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]"],
    "phi4": ["<|im_start|>", "<|im_sep|>", "<|im_end|>"],
    "gpt_oss": ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"],
    "smollm2": ["<|im_start|>", "<|im_end|>"],
    "smollm3": ["<|im_start|>", "<|im_end|>"],
}
BEGINS = {"llama3": "<|begin_of_text|>", "gemma3": "<bos>", "mistral": "<s>"}
ENDS = {"llama3": "<|eot_id|>", "gemma3": "<end_of_turn>", "mistral": "</s>", "gpt_oss": "<|return|>"}
#: Before the words of an answer, and after them; the last answer's, and an earlier one's.
LAST = {
    "qwen3": ("<think>\n\n</think>\n\n", "<|im_end|>\n"),
    "llama3": ("", "<|eot_id|>"),
    "gemma3": ("", "<end_of_turn>\n"),
    "mistral": (" ", "</s>"),
    "phi4": ("", "<|im_end|>"),
    "gpt_oss": ("<|channel|>final<|message|>", "<|return|>"),
    "smollm2": ("", "<|im_end|>\n"),
    "smollm3": ("<|im_start|>assistant\n<think>\n\n</think>\n", "<|im_end|>\n"),
}
EARLIER = LAST | {"qwen3": ("", "<|im_end|>\n"), "gpt_oss": ("<|channel|>final<|message|>", "<|end|>")}
#: The answer that calls weather({"city": "Paris"}).
CALLS = {
    "qwen3": '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>\n',
    "llama3": '{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>',
    "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdefg00"}]</s>',
    "gpt_oss": ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>',
    "smollm3": "<|im_start|>assistant\n<think>\n\n</think>\n"
    '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call><|im_end|>\n',
}
#: Those that take a tool's words where a question stood before.
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL: Message = {
    "role": "assistant",
    "tool_calls": [
        {
            "id": "abcdefg00",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
        }
    ],
}
each_family = pytest.mark.parametrize("family", SPECIALS)


def said(role: str, content: str, **keys: Any) -> Message:
    return {"role": role, "content": content, **keys}


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A token for every byte, and the family's own."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(sorted(alphabet))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS[family])
    template = (Path(__file__).parent / "templates" / f"{family}.jinja").read_text()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGINS.get(family),
        eos_token=ENDS.get(family, "<|im_end|>"),
        chat_template=pin_date(template, datetime(2026, 11, 27, tzinfo=UTC)),
    )


TOKENIZERS = {family: tokenizer_of(family) for family in SPECIALS}


def render(family: str, *messages: Message, tools: list[dict[str, Any]] | None = None) -> Example:
    return render_row(Row(1, list(messages), tools, True), TOKENIZERS[family], 100_000)


def runs(family: str, row: Example, of: int = 1) -> list[str]:
    """The texts of the runs of learned tokens; of those that are not learned, where `of` is 0."""
    found: list[list[int]] = [[]]
    for token_id, is_learned in zip(row.token_ids, row.loss_mask, strict=True):
        if is_learned == of:
            found[-1].append(token_id)
        elif found[-1]:
            found.append([])
    tokenizer: Any = TOKENIZERS[family]
    return [tokenizer.decode(run) for run in found if run]


def answer(family: str, words: str, *, is_last: bool) -> str:
    before, behind = (LAST if is_last else EARLIER)[family]
    return before + words + behind


@each_family
def test_one_answer(family: str) -> None:
    row = render(family, said("user", "Two and two?"), said("assistant", "Four."))

    assert runs(family, row) == [answer(family, "Four.", is_last=True)]


@each_family
@pytest.mark.parametrize("has_system", [False, True])
def test_every_answer_of_a_conversation(family: str, has_system: bool) -> None:
    system = [said("system", "Be brief.")] * has_system
    turns = [said("user", "A?"), said("assistant", "a."), said("user", "B?"), said("assistant", "b.")]
    row = render(family, *system, *turns, said("user", "C?"), said("assistant", "c."))

    expected = [("a.", False), ("b.", False), ("c.", True)]
    assert runs(family, row) == [answer(family, words, is_last=is_last) for words, is_last in expected]


@each_family
def test_an_answer_of_weight_0_is_not_learned(family: str) -> None:
    turns = [said("user", "A?"), said("assistant", "a.", weight=0), said("user", "B?"), said("assistant", "b.")]

    assert runs(family, render(family, *turns)) == [answer(family, "b.", is_last=True)]


@each_family
def test_what_follows_the_last_answer_is_not_learned(family: str) -> None:
    row = render(family, said("user", "A?"), said("assistant", "a."), said("user", "B?"))

    assert runs(family, row) == [answer(family, "a.", is_last=False)]


@pytest.mark.parametrize("family", CALLS)
def test_a_call_is_learned_and_what_the_tool_says_is_not(family: str) -> None:
    told = said("tool", "21 degrees", tool_call_id="abcdefg00")
    row = render(family, said("user", "Weather?"), CALL, told, said("assistant", "Warm."), tools=TOOLS)

    assert runs(family, row) == [CALLS[family], answer(family, "Warm.", is_last=True)]


@pytest.mark.parametrize("family", ["qwen3", "llama3", "gpt_oss"])
def test_a_row_that_ends_in_a_call(family: str) -> None:
    (learned,) = runs(family, render(family, said("user", "Weather?"), CALL, tools=TOOLS))

    assert learned in (CALLS[family], "<think>\n\n</think>\n\n" + CALLS[family])


WORDS = st.text(alphabet=" \n.-é☃", max_size=4)


@each_family
@settings(max_examples=40, deadline=None)
@given(
    turns=st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS, st.booleans()), min_size=1, max_size=4),
    system=st.none() | WORDS,
    has_question=st.booleans(),
)
def test_all_words_of_answers_are_learned_and_no_others(
    family: str, turns: list[tuple[str, str, str, str, bool]], system: str | None, has_question: bool
) -> None:
    messages = [] if system is None else [said("system", f"ASKED{system}")]
    num_learned = 0
    for before, after, own_before, own_after, is_learned in turns:
        num_learned += is_learned
        weight = {} if is_learned else {"weight": 0}
        messages.append(said("user", f"{before}ASKED{after}"))
        messages.append(said("assistant", f"{own_before}told{own_after}", **weight))
    if has_question:
        messages.append(said("user", "ASKED"))
    row = render(family, *messages)

    learned, others = "".join(runs(family, row)), "".join(runs(family, row, of=0))
    assert learned.count("told") == num_learned
    assert others.count("told") == len(turns) - num_learned
    assert "ASKED" not in learned
    assert all(run.rstrip("\n").endswith(tuple(SPECIALS[family])) for run in runs(family, row))


@pytest.mark.parametrize(
    ("family", "messages", "words"),
    [
        ("gemma3", [said("user", "a"), said("user", "b"), said("assistant", "c")], "roles must alternate"),
        ("gpt_oss", [said("tool", "a"), said("assistant", "b")], "no previous assistant message"),
        ("llama3", [CALL | {"tool_calls": CALL["tool_calls"] * 2}], "single tool-calls"),
    ],
)
def test_what_a_template_refuses_is_told_with_the_line(family: str, messages: list[Message], words: str) -> None:
    with pytest.raises(InvalidData, match=f"Example 1 cannot be rendered.*{words}"):
        render(family, said("user", "Hi"), *messages[:1]) if family == "llama3" else render(family, *messages)
