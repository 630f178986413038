from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caesura.data.lines import CHAT, PREFERENCE, Problem
from caesura.data.rows import Row, TextRow, parse_rows

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
GOOD = {"messages": [USER, ANSWER]}
FUNCTION = {"name": "weather", "arguments": "{}"}
CALL = {"id": "call_1", "type": "function", "function": FUNCTION}
TOOL = {"type": "function", "function": {"name": "weather", "description": "…", "parameters": {"type": "object"}}}


def line(row: object) -> bytes:
    return json.dumps(row).encode() + b"\n"


def row_of(value: object) -> Row:
    (row,) = parse_rows([line(value)])
    assert isinstance(row, Row), row
    return row


def problem_of(content: bytes) -> Problem:
    (problem,) = parse_rows([content])
    assert isinstance(problem, Problem), problem
    return problem


def answered(*messages: object, **keys: Any) -> dict[str, Any]:
    """A row with `messages` before an answer that is all right."""
    return {"messages": [*messages, ANSWER], **keys}


ROLES = "'system', 'developer', 'user', 'assistant', 'tool', 'function'"
FAULTY_ROWS: list[tuple[object, str, str | None]] = [
    # The row.
    ([GOOD], "Example 1 is not a dictionary", None),
    ("text", "Example 1 is not a dictionary", None),
    (
        {"text": "Hi"},
        "Unexpected file format, expected either prompt/completion pairs or chat messages. (line 1)",
        None,
    ),
    ({"prompt": "Hi", "completion": ""}, "Example 1 has an empty completion", "completion"),
    ({"prompt": 1, "completion": "Hello"}, "Example 1 has a 'prompt' that is not a string: 1", "prompt"),
    (
        {"prompt": "Hi", "completion": ["Hello"]},
        "Example 1 has a 'completion' that is not a string: a list",
        "completion",
    ),
    ({"prompt": "Hi", "completion": "Hello", "weight": 1}, 'Example 1 contains an extra "weight".', "weight"),
    (
        {"prompt": "Hi"},
        "Unexpected file format, expected either prompt/completion pairs or chat messages. (line 1)",
        None,
    ),
    (
        {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]},
        "Example 1 is in the fine-tune-preference format, but the specified fine-tuning job is using 'supervised' as"
        " the training method",
        None,
    ),
    (GOOD | {"weight": 1}, 'Example 1 contains an extra "weight".', "weight"),
    ({"messages": []}, "Example 1 has no messages: 'messages' must be a list of at least one", "messages"),
    ({"messages": "Hi"}, "Example 1 has no messages: 'messages' must be a list of at least one", "messages"),
    ({"messages": [USER]}, "Example 1 has no assistant message to learn from", "messages"),
    (
        {"messages": [USER, ANSWER | {"weight": 0}]},
        "Example 1 has no assistant message to learn from",
        "messages",
    ),
    # A message.
    (answered("Hi"), "Example 1, message 1 is not a dictionary", "messages[0]"),
    (
        {"messages": [USER, {"content": "Hello"}]},
        "Example 1, message 2 Discriminator 'role' is missing in value",
        "messages[1].role",
    ),
    (answered({"role": "bot", "content": "Hi"}), 'Example 1, message 1 has the unknown role "bot"', "messages[0].role"),
    (
        answered({"role": ["user"], "content": ""}),
        "Example 1, message 1 has the unknown role a list",
        "messages[0].role",
    ),
    (answered(USER | {"text": "Hi"}), 'Example 1, message 1 contains an extra "text".', "messages[0].text"),
    (answered(USER | {"weight": 1}), 'Example 1, message 1 contains an extra "weight".', "messages[0].weight"),
    (
        answered(USER | {"tool_calls": [CALL]}),
        'Example 1, message 1 contains an extra "tool_calls".',
        "messages[0].tool_calls",
    ),
    (answered(USER | {"name": 5}), "Example 1, message 1 has a 'name' that is not a string", "messages[0].name"),
    # Its content.
    (answered({"role": "user"}), "Example 1, message 1 has no content", "messages[0].content"),
    (answered(USER | {"content": None}), "Example 1, message 1 has no content", "messages[0].content"),
    ({"messages": [USER, {"role": "assistant"}]}, "Example 1, message 2 has no content", "messages[1].content"),
    (
        answered(USER | {"content": 5}),
        "Example 1, message 1 has a content that is neither a string nor a list of parts: 5",
        "messages[0].content",
    ),
    (
        answered(USER | {"content": []}),
        "Example 1, message 1 has a content that is neither a string nor a list of parts: a list",
        "messages[0].content",
    ),
    (
        answered(
            USER | {"content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "…"}}]}
        ),
        'Example 1, message 1 has a part of type "image_url": images are not supported',
        "messages[0].content[1]",
    ),
    (
        answered(USER | {"content": [{"type": "input_audio"}]}),
        'Example 1, message 1 has a part of type "input_audio": only text is supported',
        "messages[0].content[0]",
    ),
    (
        answered(USER | {"content": ["Hi"]}),
        "Example 1, message 1 has a part of type null: only text is supported",
        "messages[0].content[0]",
    ),
    (
        answered(USER | {"content": [{"type": "text"}]}),
        "Example 1, message 1 has a text part without text",
        "messages[0].content[0]",
    ),
    # Its weight.
    ({"messages": [USER, ANSWER | {"weight": 0.5}]}, "Example 1, message 2 has the weight 0.5", "messages[1].weight"),
    ({"messages": [USER, ANSWER | {"weight": True}]}, "Example 1, message 2 has the weight true", "messages[1].weight"),
    ({"messages": [USER, ANSWER | {"weight": "1"}]}, 'Example 1, message 2 has the weight "1"', "messages[1].weight"),
    # Its tool calls.
    (
        answered(USER, ANSWER | {"tool_calls": []}),
        "Example 1, message 2 has no tool calls: 'tool_calls' must be a list of at least one",
        "messages[1].tool_calls",
    ),
    (
        answered(USER, ANSWER | {"tool_calls": [CALL, {"function": FUNCTION}]}),
        "Example 1, message 2 has a tool call 2 that is not of type 'function'",
        "messages[1].tool_calls[1]",
    ),
    (
        answered(USER, ANSWER | {"tool_calls": [CALL | {"id": 1}]}),
        "Example 1, message 2 has a tool call 1 whose id is not a string",
        "messages[1].tool_calls[0]",
    ),
    (
        answered(USER, ANSWER | {"tool_calls": [{"type": "function"}]}),
        "Example 1, message 2 has a tool call 1 without a function",
        "messages[1].tool_calls[0].function",
    ),
    (
        answered(USER, ANSWER | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": {"x": 1}}}]}),
        "Example 1, message 2 has a tool call 1 whose function's arguments is not a string",
        "messages[1].tool_calls[0].function.arguments",
    ),
    (
        answered(USER, ANSWER | {"tool_calls": [CALL], "function_call": FUNCTION}),
        "Example 1, message 2 has both 'tool_calls' and 'function_call'",
        "messages[1].function_call",
    ),
    (
        answered(USER, ANSWER | {"function_call": {"name": "f"}}),
        "Example 1, message 2 has a function_call whose function's arguments is not a string",
        "messages[1].function_call.arguments",
    ),
    # The tools.
    (GOOD | {"tools": {}}, "Example 1 has 'tools' that are not a list", "tools"),
    (GOOD | {"tools": [TOOL, {"name": "f"}]}, "Example 1 has a tool 2 that is not of type 'function'", "tools[1]"),
    (
        GOOD | {"tools": [{"type": "function", "function": {}}]},
        "Example 1 has a tool 1 whose function has no name",
        "tools[0]",
    ),
    (
        GOOD | {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "dict"}}}]},
        "Example 1 has a tool 1 whose parameters are not the JSON schema of an object:"
        ' its \'type\' is "dict", not "object"',
        "tools[0].function.parameters",
    ),
    (
        GOOD | {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": 1}}}}]},
        "Example 1 has a tool 1 whose parameters are not the JSON schema of an object:"
        " its 'properties' are not an object of schemas",
        "tools[0].function.parameters",
    ),
    (
        GOOD | {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"required": "a"}}}]},
        "Example 1 has a tool 1 whose parameters are not the JSON schema of an object:"
        " 'required' is not a list of names",
        "tools[0].function.parameters",
    ),
    (
        GOOD | {"tools": [{"type": "function", "function": {"name": "f", "parameters": "x"}}]},
        "Example 1 has a tool 1 whose parameters are not a JSON schema",
        "tools[0]",
    ),
    (
        GOOD | {"functions": [{"name": "f", "description": 5}]},
        "Example 1 has a tool 1 whose description is not a string",
        "functions[0]",
    ),
    (GOOD | {"tools": [TOOL], "functions": []}, "Example 1 has both 'tools' and 'functions'", "functions"),
    (
        GOOD | {"parallel_tool_calls": "no"},
        "Example 1 has a 'parallel_tool_calls' that is not a boolean: \"no\"",
        "parallel_tool_calls",
    ),
]


@pytest.mark.parametrize(("value", "message", "field"), FAULTY_ROWS)
def test_a_faulty_row_is_told_with_its_place_and_a_remedy(value: object, message: str, field: str | None) -> None:
    problem = problem_of(line(value))
    assert (problem.message, problem.field, problem.line) == (message, field, 1)
    assert problem.remedy.endswith(".")


UNPARSABLE_LINES = [
    (
        b'{"messages": [{"role": "user", "content": "Hi"} {"role": "assistant"}]}',
        "line contains invalid json: Expecting ',' delimiter: line 1 column 49 (char 48)",
    ),
    (b"[", "line contains invalid json: Expecting value: line 1 column 2 (char 1)"),
    (b'{"messages": NaN}', "line contains invalid json: NaN is not a JSON number"),
    (b'{"messages": -Infinity}', "line contains invalid json: -Infinity is not a JSON number"),
    (b"[" * 100_000, "line contains invalid json: it is nested too deeply"),
    (b'{"a": "\xe9"}', "line is not valid UTF-8: 'utf-8' codec can't decode byte 0xe9 in position 7:"),
    (b'{"a": "\\ud83e"}', "line holds half of a surrogate pair:"),
]


@pytest.mark.parametrize(("content", "words"), UNPARSABLE_LINES)
def test_an_unparsable_line_is_told_in_the_parsers_words(content: bytes, words: str) -> None:
    problem = problem_of(content)
    assert problem.message.startswith(f"Example 1 cannot be parsed. Error: {words}")
    assert problem.message.endswith(" (line 1)")
    assert problem.remedy == "Write one JSON object on each line, in UTF-8 and without line breaks inside it."


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (line({"messages": 5, "input": None}), CHAT),
        (line({"messages": [USER]}), CHAT),
        (line({"input": 5, "preferred_completion": 5}), PREFERENCE),
        (line({"input": {"messages": [USER]}, "non_preferred_output": [ANSWER], "messages": []}), PREFERENCE),
        (line({"input": {"messages": [USER]}, "messages": [USER]}), None),
        (line({"messages": [USER], "preferred_output": [ANSWER]}), None),
        (line({"text": "Hi"}), None),
        (line([]), None),
        (b"{", None),
    ],
)
def test_a_problem_says_which_format_its_line_has(content: bytes, expected: object) -> None:
    assert problem_of(content).format == expected


def test_an_unknown_roles_remedy_names_the_legal_ones() -> None:
    assert problem_of(line(answered({"role": "bot"}))).remedy == f"The role must be one of: {ROLES}."


def test_an_extra_keys_remedy_names_the_legal_ones() -> None:
    remedy = problem_of(line(answered(USER | {"weight": 1}))).remedy
    assert remedy == "Remove it: a message of the role 'user' may have 'role', 'content', 'name'."


def test_every_faulty_row_is_told_once_and_the_good_ones_still_come() -> None:
    twice_wrong = {"messages": [{"content": 5}, {"role": "bot"}], "extra": 1}
    items = list(parse_rows([line(GOOD), b"{", line(twice_wrong), line(GOOD)]))
    assert [type(item) for item in items] == [Row, Problem, Problem, Row]
    assert [item.line for item in items] == [1, 2, 3, 4]


def test_a_byte_order_mark_and_windows_line_ends_change_nothing() -> None:
    content = json.dumps(GOOD).encode()
    assert list(parse_rows([b"\xef\xbb\xbf" + content + b"\r\n", content + b"\r\n"])) == [
        Row(1, [USER, ANSWER], None, True),
        Row(2, [USER, ANSWER], None, True),
    ]


def test_a_byte_order_mark_is_taken_at_the_files_beginning_only() -> None:
    _, problem = parse_rows([line(GOOD), b"\xef\xbb\xbf" + line(GOOD)])
    assert isinstance(problem, Problem)


def test_blank_lines_are_skipped_and_the_others_keep_the_files_line_numbers() -> None:
    lines = [b"\n", line(GOOD), b" \t\r\n", b"{\n", b"", line(GOOD), b"\n"]
    assert [item.line for item in parse_rows(lines)] == [2, 4, 6]
    assert list(parse_rows([b"\xef\xbb\xbf\r\n", b"\n"])) == []


def test_a_row_keeps_its_messages_tools_and_weights() -> None:
    messages = [
        {"role": "developer", "content": "Be brief.", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "tool_calls": [CALL], "weight": 0},
        {"role": "tool", "content": "fine", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "It is fine.", "weight": 1},
    ]
    value = {"messages": messages, "tools": [TOOL], "parallel_tool_calls": False}
    assert row_of(value) == Row(1, messages, [TOOL], False)


def test_null_counts_as_absent() -> None:
    value = {
        "messages": [USER | {"name": None}, ANSWER | {"tool_calls": None, "weight": None, "refusal": None}],
        "tools": None,
        "parallel_tool_calls": None,
    }
    assert row_of(value) == Row(1, [USER, ANSWER], None, True)
    call = {"role": "assistant", "content": None, "tool_calls": [CALL | {"id": None}]}
    assert row_of({"messages": [call]}).messages == [{"role": "assistant", "tool_calls": [CALL | {"id": None}]}]


def test_functions_and_function_calls_are_read_as_tools_and_tool_calls() -> None:
    row = row_of(
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "function_call": FUNCTION},
                {"role": "function", "name": "weather", "content": "fine"},
                ANSWER,
            ],
            "functions": [TOOL["function"]],
        }
    )
    assert row.tools == [TOOL]
    assert row.messages[1] == {"role": "assistant", "tool_calls": [{"type": "function", "function": FUNCTION}]}
    assert row.messages[2] == {"role": "tool", "name": "weather", "content": "fine"}


def test_a_fault_in_a_modernized_function_call_is_told() -> None:
    problem = problem_of(line(answered(USER, ANSWER | {"function_call": "weather"})))
    assert problem.message == "Example 1, message 2 has a function_call without a function"


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_no_bytes_make_the_parser_raise(lines: list[bytes]) -> None:
    for item in parse_rows(lines):
        assert isinstance(item, Row | TextRow | Problem)


_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_row_keys = ["messages", "tools", "functions", "input", "prompt", "completion"]
_message_keys = ["role", "content", "name", "weight", "tool_calls", "function_call", "type", "text", "arguments"]
_roles = ["system", "user", "assistant", "tool", "function"]
_words = st.sampled_from(_row_keys + _message_keys + _roles)
_values = st.recursive(
    _scalars | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=4),
    max_leaves=12,
)


@given(_values | st.fixed_dictionaries({"messages": st.lists(_values, max_size=3)}, optional={"tools": _values}))
def test_no_json_makes_the_parser_raise_and_each_line_gives_one_item(value: object) -> None:
    (item,) = parse_rows([line(value)])
    assert item.line == 1
    assert isinstance(item, Row | TextRow) or (item.message and item.remedy)


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "function"])
def test_however_deep_a_value_is_its_problem_can_be_told(role: str) -> None:
    deep = b'{"messages": [{"role": "%s", "content": %s, "weight": 1}]}' % (role.encode(), b"[" * 900 + b"]" * 900)
    assert "message 1" in problem_of(deep).message


def test_the_older_format_is_text() -> None:
    lines = [line({"prompt": "Hi", "completion": " Hello"}), line({"prompt": "", "completion": "x", "messages": None})]

    assert list(parse_rows(lines)) == [TextRow(1, "Hi", " Hello"), TextRow(2, "", "x")]


def test_a_file_may_hold_both_formats() -> None:
    kinds = [type(item) for item in parse_rows([line(GOOD), line({"prompt": "Hi", "completion": "Hello"})])]

    assert kinds == [Row, TextRow]
