from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caesura.data.lines import Problem
from caesura.data.preferences import PreferenceRow, parse_preferences

USER = {"role": "user", "content": "Weather in Oslo?"}
GOOD = {"role": "assistant", "content": "4 degrees."}
BAD = {"role": "assistant", "content": "No idea."}
FUNCTION = {"name": "weather", "arguments": "{}"}
CALLING = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": FUNCTION}]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "4"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
INPUT = {"messages": [USER]}
PAIR = {"input": INPUT, "preferred_output": [GOOD], "non_preferred_output": [BAD]}


def line(row: object) -> bytes:
    return json.dumps(row).encode() + b"\n"


def row_of(value: object) -> PreferenceRow:
    (row,) = parse_preferences([line(value)])
    assert isinstance(row, PreferenceRow), row
    return row


def problem_of(value: object) -> Problem:
    (problem,) = parse_preferences([line(value)])
    assert isinstance(problem, Problem), problem
    return problem


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in PAIR.items() if key not in keys}


def asked(*messages: object, **keys: Any) -> dict[str, Any]:
    return PAIR | {"input": {"messages": [*messages], **keys}}


def preferring(*messages: object) -> dict[str, Any]:
    return PAIR | {"preferred_output": [*messages]}


NO_KEY = "Example 1 has none of 'input', 'preferred_output' and 'non_preferred_output'"
FAULTY_ROWS: list[tuple[object, str, str | None]] = [
    # The row.
    ([PAIR], "Example 1 is not a dictionary", None),
    ("text", "Example 1 is not a dictionary", None),
    ({}, NO_KEY, None),
    (
        {"prompt": "Hi", "completion": "Hello"},
        "Example 1 is in the fine-tune-completion format, but the specified fine-tuning job is using 'dpo' as the"
        " training method",
        None,
    ),
    ({"prompt": "Hi", "chosen": "Hello", "rejected": "What?"}, NO_KEY, None),
    (
        {"messages": [USER, GOOD]},
        "Example 1 is in the fine-tune-chat format, but the specified fine-tuning job is using 'dpo' as the training"
        " method",
        None,
    ),
    (PAIR | {"prefered_output": [GOOD]}, 'Example 1 contains an extra "prefered_output".', "prefered_output"),
    (without("input") | INPUT, "Example 1 has 'messages' outside of 'input'", "messages"),
    (PAIR | {"tools": [TOOL]}, "Example 1 has 'tools' outside of 'input'", "tools"),
    (
        PAIR | {"parallel_tool_calls": True},
        "Example 1 has 'parallel_tool_calls' outside of 'input'",
        "parallel_tool_calls",
    ),
    # The input.
    (without("input"), "Example 1 has no 'input'", "input"),
    (PAIR | {"input": None}, "Example 1 has no 'input'", "input"),
    (PAIR | {"input": "Hi"}, "Example 1 has an 'input' that is not a dictionary", "input"),
    (PAIR | {"input": [USER]}, "Example 1 has an 'input' that is not a dictionary", "input"),
    (PAIR | {"input": {"prompt": "Hi"}}, 'Example 1, input contains an extra "prompt".', "input.prompt"),
    (
        PAIR | {"input": {"tools": [TOOL]}},
        "Example 1, input has no messages: 'messages' must be a list of at least one",
        "input.messages",
    ),
    (asked(), "Example 1, input has no messages: 'messages' must be a list of at least one", "input.messages"),
    (asked("Hi"), "Example 1, input, message 1 is not a dictionary", "input.messages[0]"),
    (
        asked(USER, {"content": "Hi"}),
        "Example 1, input, message 2 Discriminator 'role' is missing in value",
        "input.messages[1].role",
    ),
    (
        asked(USER | {"content": [{"type": "image_url", "image_url": {"url": "…"}}]}),
        'Example 1, input, message 1 has a part of type "image_url": images are not supported',
        "input.messages[0].content[0]",
    ),
    (
        asked(USER, GOOD),
        "Example 1, input, message 2 is the assistant's, but the last message of an input is the one to be answered",
        "input.messages[1].role",
    ),
    (asked(USER, tools={}), "Example 1, input has 'tools' that are not a list", "input.tools"),
    (
        asked(USER, tools=[{"name": "f"}]),
        "Example 1, input has a tool 1 that is not of type 'function'",
        "input.tools[0]",
    ),
    (
        asked(USER, parallel_tool_calls="no"),
        "Example 1, input has a 'parallel_tool_calls' that is not a boolean: \"no\"",
        "input.parallel_tool_calls",
    ),
    # The sides.
    (without("preferred_output"), "Example 1 has no 'preferred_output'", "preferred_output"),
    (without("non_preferred_output"), "Example 1 has no 'non_preferred_output'", "non_preferred_output"),
    (PAIR | {"preferred_output": None}, "Example 1 has no 'preferred_output'", "preferred_output"),
    (
        PAIR | {"preferred_completion": [GOOD]},
        "Example 1 has both 'preferred_output' and 'preferred_completion'",
        "preferred_completion",
    ),
    (
        PAIR | {"non_preferred_completion": [BAD]},
        "Example 1 has both 'non_preferred_output' and 'non_preferred_completion'",
        "non_preferred_completion",
    ),
    (
        preferring(BAD | {"name": None, "weight": None}),
        "Example 1 has the same answer as 'preferred_output' and as 'non_preferred_output'",
        "non_preferred_output",
    ),
    (
        preferring(BAD | {"weight": 1, "content": [{"type": "text", "text": BAD["content"]}]}),
        "Example 1 has the same answer as 'preferred_output' and as 'non_preferred_output'",
        "non_preferred_output",
    ),
    # An output.
    (
        PAIR | {"preferred_output": "4 degrees."},
        "Example 1, preferred_output has no messages: 'preferred_output' must be a list of at least one",
        "preferred_output",
    ),
    (
        PAIR | {"non_preferred_output": BAD},
        "Example 1, non_preferred_output has no messages: 'non_preferred_output' must be a list of at least one",
        "non_preferred_output",
    ),
    (
        preferring(),
        "Example 1, preferred_output has no messages: 'preferred_output' must be a list of at least one",
        "preferred_output",
    ),
    (preferring("4"), "Example 1, preferred_output, message 1 is not a dictionary", "preferred_output[0]"),
    (
        preferring(USER, GOOD),
        "Example 1, preferred_output, message 1 has the role 'user', but an output has only 'assistant' and 'tool'",
        "preferred_output[0].role",
    ),
    (
        without("non_preferred_output") | {"non_preferred_completion": [BAD, USER | {"role": "system"}]},
        "Example 1, non_preferred_completion, message 2 has the role 'system', but an output has only 'assistant' and"
        " 'tool'",
        "non_preferred_completion[1].role",
    ),
    (
        preferring(GOOD | {"role": "model"}),
        'Example 1, preferred_output, message 1 has the unknown role "model"',
        "preferred_output[0].role",
    ),
    (
        preferring(GOOD | {"weight": 0.5}),
        "Example 1, preferred_output, message 1 has the weight 0.5",
        "preferred_output[0].weight",
    ),
    (
        preferring(CALLING),
        "Example 1, preferred_output has no assistant message with text",
        "preferred_output",
    ),
    (
        preferring(CALLING, RESULT),
        "Example 1, preferred_output has no assistant message with text",
        "preferred_output",
    ),
    (
        preferring(GOOD | {"content": " \n"}),
        "Example 1, preferred_output has no assistant message with text",
        "preferred_output",
    ),
    (
        preferring(GOOD | {"content": [{"type": "text", "text": ""}]}),
        "Example 1, preferred_output has no assistant message with text",
        "preferred_output",
    ),
    (
        preferring(CALLING | {"weight": 1}, RESULT, GOOD | {"weight": 0}),
        "Example 1, preferred_output has no text to compare: all of it has the weight 0",
        "preferred_output",
    ),
]


@pytest.mark.parametrize(("value", "message", "field"), FAULTY_ROWS)
def test_a_faulty_row_is_told_with_its_place_and_a_remedy(value: object, message: str, field: str | None) -> None:
    problem = problem_of(value)
    assert (problem.message, problem.field, problem.line) == (message, field, 1)
    assert problem.remedy.endswith(".")


def test_an_unknown_roles_remedy_names_those_that_an_output_may_have() -> None:
    remedy = problem_of(preferring(GOOD | {"role": "model"})).remedy
    assert remedy == "The role must be one of: 'assistant', 'tool', 'function'."


def test_a_row_keeps_its_messages_outputs_weights_and_tools() -> None:
    earlier = [{"role": "developer", "content": "Be brief."}, USER, GOOD, USER]
    preferred = [CALLING | {"weight": 0}, RESULT, GOOD | {"weight": 1}]
    value = asked(*earlier, tools=[TOOL], parallel_tool_calls=False) | {"preferred_output": preferred}
    assert row_of(value) == PreferenceRow(1, earlier, preferred, [BAD], [TOOL], False)


@pytest.mark.parametrize("preferred", ["preferred_output", "preferred_completion"])
@pytest.mark.parametrize("non_preferred", ["non_preferred_output", "non_preferred_completion"])
def test_the_older_names_of_the_outputs_are_read_too(preferred: str, non_preferred: str) -> None:
    value = {"input": INPUT, preferred: [GOOD], non_preferred: [BAD]}
    assert row_of(value) == PreferenceRow(1, [USER], [GOOD], [BAD], None, True)


def test_an_input_may_end_with_any_role_but_the_assistants() -> None:
    for last in (USER, {"role": "system", "content": "Say hello."}, {"role": "developer", "content": "Say hello."}):
        assert row_of(asked(last)).messages == [last]
    assert row_of(asked(USER, CALLING, RESULT)).messages == [USER, CALLING, RESULT]


def test_null_counts_as_absent() -> None:
    value = {
        "input": {"messages": [USER | {"name": None}], "tools": None, "functions": None, "parallel_tool_calls": None},
        "preferred_output": [GOOD | {"weight": None, "tool_calls": None, "refusal": None}],
        "preferred_completion": None,
        "non_preferred_output": [BAD],
        "messages": None,
    }
    assert row_of(value) == PreferenceRow(1, [USER], [GOOD], [BAD], None, True)


def test_functions_and_function_calls_are_read_as_tools_and_tool_calls() -> None:
    calling = {"role": "assistant", "content": None, "function_call": FUNCTION}
    result = {"role": "function", "name": "weather", "content": "4"}
    row = row_of(asked(USER, functions=[TOOL["function"]]) | {"preferred_output": [calling, result, GOOD]})
    assert row.tools == [TOOL]
    assert row.preferred == [
        {"role": "assistant", "tool_calls": [{"type": "function", "function": FUNCTION}]},
        {"role": "tool", "name": "weather", "content": "4"},
        GOOD,
    ]


def test_every_faulty_row_is_told_once_and_the_good_ones_still_come() -> None:
    twice_wrong = PAIR | {"preferred_output": [], "non_preferred_output": []}
    items = list(parse_preferences([line(PAIR), b"\n", b"{", line(twice_wrong), line(PAIR)]))
    assert [type(item) for item in items] == [PreferenceRow, Problem, Problem, PreferenceRow]
    assert [item.line for item in items] == [1, 3, 4, 5]


_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_keys = [*PAIR, "messages", "tools", "functions", "role", "content", "weight", "tool_calls", "function_call"]
_words = st.sampled_from([*_keys, "type", "text", "name", "arguments", "user", "assistant", "tool", "function"])
_values = st.recursive(
    _scalars | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=4),
    max_leaves=12,
)
_messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool"]), "content": _values},
        optional={"weight": st.sampled_from([0, 1, None]), "tool_calls": st.just(CALLING["tool_calls"]) | _values},
    ),
    max_size=3,
)


@given(
    _values
    | st.fixed_dictionaries(
        {
            "input": _values | st.fixed_dictionaries({"messages": _messages}, optional={"tools": _values}),
            "preferred_output": _messages | _values,
            "non_preferred_output": _messages | _values,
        }
    )
)
def test_no_json_makes_the_parser_raise_and_each_line_gives_one_item(value: object) -> None:
    (item,) = parse_preferences([line(value)])
    assert item.line == 1
    assert isinstance(item, PreferenceRow) or (item.message and item.remedy)


@pytest.mark.parametrize("where", ["call", "arguments"])
def test_however_deep_two_answers_are_they_can_be_compared(where: str) -> None:
    def output(depth: int) -> str:
        deep = "[" * depth + "]" * depth
        extra, arguments = (deep, "{}") if where == "call" else ("0", f'{{"x": {deep}}}')
        function = f'{{"name": "f", "arguments": {json.dumps(arguments)}}}'
        call = f'{{"type": "function", "extra": {extra}, "function": {function}}}'
        return f'[{{"role": "assistant", "content": "4", "tool_calls": [{call}]}}]'

    # The parser's own limit is somewhere between.
    for depth in range(800, 1100):
        row = f'{{"input": {json.dumps(INPUT)}, "preferred_output": {output(depth)}'
        (item,) = parse_preferences([f'{row}, "non_preferred_output": {output(depth)}}}'.encode()])
        assert isinstance(item, Problem)
