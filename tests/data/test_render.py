from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from caesura.data.render import Example, pin_date, render_row, template_messages
from caesura.data.rows import Row
from caesura.errors import InvalidData
from caesura.settings import EMBEDDED_BASE_PATH

Message = dict[str, Any]


def said(role: str, content: str, **keys: Any) -> Message:
    return {"role": role, "content": content, **keys}


CALL = {
    "role": "assistant",
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
        {"id": "call_2", "type": "function", "function": {"name": "weather", "arguments": "not JSON"}},
    ],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CONVERSATIONS: dict[str, tuple[list[Message], list[Message] | None]] = {
    "one turn": ([said("user", "Hello"), said("assistant", "Hello there")], None),
    "system": ([said("system", "Be brief."), said("user", "Hello"), said("assistant", "Hi")], None),
    "many turns": ([said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")], None),
    "tools": ([said("user", "Weather?"), CALL, said("tool", "fine"), said("assistant", "It is fine.")], TOOLS),
    "ends in a tool call": ([said("user", "Weather?"), CALL], TOOLS),
    "adjacent assistants": ([said("user", "a"), said("assistant", "b"), said("assistant", "c")], None),
    "equal answers": ([said("user", "b"), said("assistant", "b"), said("assistant", "b")], None),
    "assistant first": ([said("assistant", "Hello"), said("user", "a"), said("assistant", "b")], None),
    "assistant alone": ([said("assistant", "Hello")], None),
    "ends with a question": ([said("user", "a"), said("assistant", "b"), said("user", "c")], None),
    "unicode": ([said("user", "¿Qué? 🦆"), said("assistant", "数学 🧑‍🚀 e\u0301 🦆")], None),
    "newlines": ([said("user", "\n\na\n"), said("assistant", "\n\n b \n\n"), said("user", "c")], None),
    "empty answer": ([said("user", "a"), said("assistant", ""), said("user", "b"), said("assistant", "c")], None),
}
each_conversation = pytest.mark.parametrize("name", CONVERSATIONS)


def reference(row: Row, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    encoding: Any = tokenizer.apply_chat_template(
        template_messages(row.messages),
        tools=row.tools,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return encoding["input_ids"], encoding["assistant_masks"]


def learned_texts(example: Example, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The text of each run of learned tokens."""
    runs: list[list[int]] = [[]]
    for token, is_learned in zip(example.token_ids, example.loss_mask, strict=True):
        if is_learned:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def assert_same_but_newlines(plain: Example, marked: Example, tokenizer: PreTrainedTokenizerFast) -> None:
    assert plain.token_ids == marked.token_ids
    for place, (is_plain, is_marked) in enumerate(zip(plain.loss_mask, marked.loss_mask, strict=True)):
        is_trailing_newline = (
            place > 0
            and plain.loss_mask[place - 1] == 1
            and plain.token_ids[place - 1] == tokenizer.eos_token_id
            and tokenizer.decode([plain.token_ids[place]]).startswith("\n")
        )
        assert is_plain == (1 if is_trailing_newline else is_marked)


@each_conversation
def test_the_ids_and_the_mask_are_those_of_the_templates_own_markers(name: str, marked: Any, make_row: Any) -> None:
    messages, tools = CONVERSATIONS[name]
    row = make_row(*messages, tools=tools)
    example = render_row(row, marked, 10_000)
    assert (example.token_ids, example.loss_mask) == reference(row, marked)
    assert 1 in example.loss_mask


@each_conversation
def test_without_markers_the_ids_are_the_same_and_the_mask_too_up_to_the_newline_after_an_answer(
    name: str, marked: Any, plain: Any, make_row: Any
) -> None:
    messages, tools = CONVERSATIONS[name]
    row = make_row(*messages, tools=tools)
    assert_same_but_newlines(render_row(row, plain, 10_000), render_row(row, marked, 10_000), plain)


_contents = st.text(st.characters(exclude_characters="<", exclude_categories=("Cs",)), max_size=12)
_messages = st.builds(said, st.sampled_from(["system", "user", "assistant"]), _contents)


@settings(deadline=None, max_examples=150)
@given(messages=st.lists(_messages, max_size=5), answer=_contents)
def test_with_and_without_markers_agree_on_whatever_is_said(
    messages: list[Message], answer: str, marked: Any, plain: Any, make_row: Any
) -> None:
    row = make_row(*messages, said("assistant", answer))
    example = render_row(row, marked, 10_000)
    assert (example.token_ids, example.loss_mask) == reference(row, marked)
    assert_same_but_newlines(render_row(row, plain, 10_000), example, plain)


def test_answers_and_tool_calls_are_learned_with_their_ends_and_nothing_else_is(plain: Any, make_row: Any) -> None:
    row = make_row(said("user", "Weather?"), CALL, said("tool", "fine"), said("assistant", "It is fine."), tools=TOOLS)
    assert learned_texts(render_row(row, plain, 10_000), plain) == [
        '<tool_call>weather {"city": "Paris"}</tool_call><tool_call>weather "not JSON"</tool_call><|im_end|>\n',
        "It is fine.<|im_end|>\n",
    ]


@pytest.mark.parametrize("template", ["marked", "plain"])
@pytest.mark.parametrize(
    ("weights", "learned"),
    [((0, 1, 1), ["two", "three"]), ((1, 0, 1), ["one", "three"]), ((1, 1, 0), ["one", "two"]), ((0, 0, 1), ["three"])],
)
def test_a_message_of_weight_0_is_not_learned_and_the_others_are(
    template: str, weights: tuple[int, ...], learned: list[str], request: pytest.FixtureRequest, make_row: Any
) -> None:
    tokenizer = request.getfixturevalue(template)
    one, two, three = (
        said("assistant", text, weight=weight) for text, weight in zip(["one", "two", "three"], weights, strict=True)
    )
    row = make_row(said("user", "a"), one, two, said("user", "b"), three, said("user", "c"))
    example = render_row(row, tokenizer, 10_000)
    texts = [text.rstrip("\n") for text in learned_texts(example, tokenizer)]
    assert texts == [f"{text}<|im_end|>" for text in learned]


#: As many models that reason: the prompt begins the reasoning, and only the last turn keeps it.
REASONING_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.role == 'assistant' and loop.last -%}
        {{- '<think>\\n' + message.content.split('</think>')[0] + '</think>' -}}
    {%- endif -%}
    {{- message.content.split('</think>')[-1] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}
"""


def test_where_a_template_drops_the_reasoning_of_earlier_turns_what_is_left_of_them_is_learned(
    make_tokenizer: Any, make_row: Any
) -> None:
    tokenizer = make_tokenizer(REASONING_TEMPLATE)
    row = make_row(
        said("user", "a"), said("assistant", "hm</think>one"), said("user", "b"), said("assistant", "so</think>two")
    )
    example = render_row(row, tokenizer, 10_000)
    assert learned_texts(example, tokenizer) == ["one<|im_end|>\n", "so</think>two<|im_end|>\n"]


def test_an_answer_is_not_taken_for_an_equal_one_before_it(make_tokenizer: Any, make_row: Any) -> None:
    tokenizer = make_tokenizer(REASONING_TEMPLATE)
    row = make_row(said("user", "a"), said("assistant", "b"), said("assistant", "b"), said("user", "c"))
    example = render_row(row, tokenizer, 10_000)

    assert learned_texts(example, tokenizer) == ["b<|im_end|>\n", "b<|im_end|>"]


@pytest.mark.parametrize("earlier", ["m.content | upper", "'\n' + (m.content | upper)", "m.content[:100]"])
def test_where_a_template_changes_an_earlier_answer_the_row_is_refused_by_its_line(
    earlier: str, make_tokenizer: Any, make_row: Any
) -> None:
    tokenizer = make_tokenizer(
        "{% for m in messages %}[{{ m.role }}]{{ m.content + '\n' if loop.last else " + earlier + " }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    row = make_row(said("user", "A"), said("assistant", "one " * 50), said("user", "B"), said("assistant", "two"))
    with pytest.raises(InvalidData, match=r"Example 3, message 2 cannot be found again.*Make it the last message"):
        render_row(row, tokenizer, 10_000)


def test_where_a_template_leaves_an_answer_out_the_row_is_refused(make_tokenizer: Any, make_row: Any) -> None:
    tokenizer = make_tokenizer("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    with pytest.raises(InvalidData, match="Example 3, message 2 cannot be found again"):
        render_row(make_row(said("user", "a"), said("assistant", "b")), tokenizer, 10_000)


def test_what_a_template_refuses_is_told_in_its_own_words_with_the_line(make_tokenizer: Any, make_row: Any) -> None:
    tokenizer = make_tokenizer("{{ raise_exception('System role not supported') }}")
    with pytest.raises(InvalidData, match=r"Example 3 cannot be rendered.*System role not supported"):
        render_row(make_row(said("user", "a"), said("assistant", "b")), tokenizer, 10_000)


def test_a_first_word_whose_token_begins_with_the_prompts_space_is_learned(make_tokenizer: Any, make_row: Any) -> None:
    tokenizer = make_tokenizer(
        "{% for m in messages %}{{ 'Assistant: ' if m.role == 'assistant' else 'User: ' }}{{ m.content + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
    )
    assert " weather" in tokenizer.decode(tokenizer(" weather")["input_ids"][:1])
    example = render_row(make_row(said("user", "a"), said("assistant", "weather")), tokenizer, 10_000)
    assert learned_texts(example, tokenizer) == [" weather\n"]


@pytest.mark.parametrize("template", ["marked", "plain"])
def test_a_long_row_is_cut_from_the_end_and_says_by_how_much(
    template: str, request: pytest.FixtureRequest, make_row: Any
) -> None:
    tokenizer = request.getfixturevalue(template)
    row = make_row(said("user", "Hello"), said("assistant", "one two three"))
    whole = render_row(row, tokenizer, 10_000)
    num_tokens = len(whole.token_ids)
    assert whole.num_truncated == render_row(row, tokenizer, num_tokens).num_truncated == 0
    cut = render_row(row, tokenizer, num_tokens - 4)
    assert cut == Example(3, whole.token_ids[:-4], whole.loss_mask[:-4], 4)


def test_the_first_token_is_never_a_target() -> None:
    assert Example(1, [5, 6, 7, 8], [1, 0, 1, 1], 0).num_loss_tokens == 2


def test_a_tool_calls_arguments_become_an_object_only_where_they_spell_one() -> None:
    def arguments(text: str) -> object:
        call = {"type": "function", "function": {"name": "f", "arguments": text}}
        (message,) = template_messages([{"role": "assistant", "tool_calls": [call]}])
        assert call["function"] == {"name": "f", "arguments": text}
        return message["tool_calls"][0]["function"]["arguments"]

    assert arguments('{"x": [1, "é"]}') == {"x": [1, "é"]}
    for text in ["", "x", "5", "[1]", '"x"', "{", "[" * 100_000]:
        assert arguments(text) == text


def test_a_template_is_given_plain_text_known_roles_and_no_empty_keys() -> None:
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    messages: list[Message] = [
        {"role": "developer", "content": parts, "name": None},
        {"role": "assistant", "content": None, "tool_calls": [], "weight": 0},
    ]
    before = json.dumps(messages)
    assert template_messages(messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "tool_calls": []},
    ]
    assert json.dumps(messages) == before


def test_the_tools_of_a_row_reach_the_template(plain: Any, make_row: Any) -> None:
    row = make_row(said("user", "a"), said("assistant", "b"), tools=TOOLS)
    assert '"name": "weather"' in plain.decode(render_row(row, plain, 10_000).token_ids)


@each_conversation
def test_the_embedded_model_learns_what_its_template_marks(name: str, make_row: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_BASE_PATH)
    messages, tools = CONVERSATIONS[name]
    row = make_row(*messages, tools=tools)
    example = render_row(row, tokenizer, 10_000)
    assert (example.token_ids, example.loss_mask) == reference(row, tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("{%- generation -%}", "").replace(
        "{%- endgeneration -%}", ""
    )
    assert_same_but_newlines(render_row(row, tokenizer, 10_000), example, tokenizer)


def test_a_template_that_prints_the_date_prints_the_one_it_is_pinned_to(
    make_tokenizer: Callable[[str], PreTrainedTokenizerFast], plain: PreTrainedTokenizerFast
) -> None:
    clock = "{%- set today = strftime_now( '%d %b %Y' ) -%}{{- today + strftime_now(\"%H\") + '\n' -}}"
    dated = make_tokenizer(pin_date(clock + str(plain.chat_template), datetime(2024, 2, 29, 7, tzinfo=UTC)))
    row = Row(1, [said("user", "Hello"), said("assistant", "Hi")], None, parallel_tool_calls=True)

    example = render_row(row, dated, 10_000)

    assert dated.decode(example.token_ids).startswith("29 Feb 202407\n")
