"""The quick check against the exact reading: whatever it takes, that takes too, and reports are the same with it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from caesura.data.lines import Problem, read_line
from caesura.data.preferences import read_preference
from caesura.data.prompts import Needed, read_prompt
from caesura.data.quick import quick_check
from caesura.data.rows import read_example
from caesura.data.validate import FORMATS, validate

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
NEEDED = (Needed(("answer",), "item.answer"),)
READERS: dict[str, Any] = {
    "supervised": read_example,
    "dpo": read_preference,
    "reinforcement": partial(read_prompt, needed=NEEDED),
}
FILES = {"supervised": "style_train", "dpo": "preference_train", "reinforcement": "reinforcement_train"}

#: What may stand anywhere in place of what belongs there.
WRONG = st.sampled_from(
    [None, True, False, 0, 1, 2, 1.0, "", " ", "x", [], {}, [None], [[]], {"type": "text"}, -1, 1e300]
)
TEXT = st.text(max_size=6)
#: JSON schemas of an object, and what is none.
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "object", "dict", None]),
        "properties": st.sampled_from([{}, {"a": {"type": "string"}}, {"a": True}, {"a": 1}, []]),
        "required": st.sampled_from([[], ["a"], "a", [1]]),
    },
)


def often(value: Any, *, wrong: Any = WRONG) -> Any:
    """Mostly what `value` draws, at times what is wrong there."""
    return st.integers(0, 11).flatmap(lambda number: wrong if number == 0 else value)


def objects(required: dict[str, Any], optional: dict[str, Any]) -> Any:
    """Objects that at times lack a key, or have one too many."""
    more = {**optional, "surplus": WRONG}
    whole = st.fixed_dictionaries(required, optional=optional)
    return st.integers(0, 9).flatmap(lambda n: st.fixed_dictionaries({}, optional=required | more) if n == 0 else whole)


PARTS = st.lists(often(objects({"type": st.just("text"), "text": often(TEXT)}, {})), max_size=2)
FUNCTIONS = objects({"name": often(TEXT), "arguments": often(TEXT)}, {})
CALLS = st.lists(
    often(objects({"type": often(st.just("function")), "function": often(FUNCTIONS)}, {"id": often(TEXT)})), max_size=2
)
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "assistant", "user"])
MESSAGES = st.lists(
    often(
        objects(
            {"role": often(ROLES), "content": often(st.one_of(TEXT, TEXT, PARTS, st.none()))},
            {
                "name": often(TEXT),
                "weight": often(st.sampled_from([0, 1])),
                "tool_calls": often(CALLS),
                "tool_call_id": often(TEXT),
                "function_call": often(FUNCTIONS),
            },
        )
    ),
    max_size=4,
)
ANSWER = st.lists(
    often(objects({"role": often(st.just("assistant")), "content": often(TEXT)}, {"weight": often(st.just(1))})),
    max_size=2,
)
TOOLS = st.lists(
    often(
        objects(
            {
                "type": often(st.just("function")),
                "function": often(
                    objects({"name": often(TEXT)}, {"description": often(TEXT), "parameters": often(PARAMETERS)})
                ),
            },
            {},
        )
    ),
    max_size=2,
)
BESIDE = {"tools": often(TOOLS), "parallel_tool_calls": often(st.booleans()), "functions": often(st.just([]))}
PROMPT = objects({"messages": often(MESSAGES)}, BESIDE)
ROWS = {
    "supervised": objects({"messages": often(MESSAGES)}, BESIDE),
    "dpo": objects(
        {"input": often(PROMPT), "preferred_output": often(ANSWER), "non_preferred_output": often(ANSWER)},
        {"preferred_completion": often(ANSWER)},
    ),
    "reinforcement": objects(
        {"messages": often(MESSAGES), "answer": often(TEXT)},
        {**BESIDE, "response_format": WRONG, "input": WRONG, "preferred_output": WRONG, "anything": WRONG},
    ),
}
GOOD = {
    "supervised": b'{"messages": [{"role": "user", "content": "a"}, '
    b'{"role": "assistant", "content": "b", "weight": 1}]}',
    "dpo": b'{"input": {"messages": [{"role": "user", "content": "a"}]}, "preferred_output": [{"role": "assistant", '
    b'"content": "b"}], "non_preferred_output": [{"role": "assistant", "content": "c"}]}',
    "reinforcement": b'{"messages": [{"role": "user", "content": "a"}], "answer": 1.5e3, '
    b'"facts": ["\\u00e9\\n", null]}',
}
#: What parsers of JSON disagree about.
SNIPPETS = st.sampled_from(
    [
        *(b"NaN", b"-Infinity", b"1e999", b"01", b"-0", b"1.", b".5", b"+1", b"1e5", b"0x1", b"null", b"true", b"True"),
        *(b"\\ud800", b"\\udc00", b"\\ud83d\\ude00", b"\\uD83D", b"\\u00", b"\\x41", b"\\", b"\\/", b"\\u0000"),
        *(b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xef\xbb\xbf", b"\x00", b"\x1f", b"\x7f", b"\t", b"\r", b"\n"),
        *(b"\x0b", b"\x0c", b"\xc2\xa0", b" ", b",", b":", b"[", b"]", b"{", b"}", b'"', b"/*c*/", b"//", b"'"),
        *(b"9" * 4300, b"9" * 4301, b"9" * 9000, b"[" * 150 + b"]" * 150, b"[" * 5000 + b"]" * 5000),
        *(b'"messages": [],', b'"role": "user",', b'"weight": 0,', b'"content": null,', b'"answer": null,'),
    ]
)


def is_row(line: bytes, method: str) -> bool:
    return not isinstance(read_line(2, line, FORMATS[method], READERS[method]), (Problem, type(None)))


def check(line: bytes, method: str) -> None:
    if quick_check(method, NEEDED)(line):
        assert is_row(line, method), line


@pytest.mark.parametrize("method", ROWS)
def test_what_is_taken_quickly_is_taken_by_the_exact_reading(method: str) -> None:
    @settings(max_examples=400, deadline=None)
    @given(ROWS[method])
    def holds(row: Any) -> None:
        check(json.dumps(row).encode(), method)
        check(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\r\n", method)

    holds()


@pytest.mark.parametrize("method", GOOD)
def test_what_is_no_json_for_the_exact_reading_is_none_for_the_quick_one(method: str) -> None:
    good = GOOD[method]

    @settings(max_examples=400, deadline=None)
    @given(st.integers(0, len(good)), st.integers(0, 2), st.one_of(SNIPPETS, st.binary(max_size=3)))
    @example(len(good) - 1, 0, b', "a": ' + b"9" * 4301)
    @example(len(good) - 1, 0, b', "a": ' + b"[" * 150 + b"]" * 150)
    def holds(place: int, num_replaced: int, snippet: bytes) -> None:
        check(good[:place] + snippet + good[place + num_replaced :], method)

    holds()


@pytest.mark.parametrize("method", GOOD)
def test_snippets_stand_for_values_too(method: str) -> None:
    """Each snippet as the value of a key of its own, in the row and within its tools."""
    good = GOOD[method]

    @settings(max_examples=100, deadline=None)
    @given(SNIPPETS)
    def holds(snippet: bytes) -> None:
        tool = b'"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": %b}}}]' % snippet
        check(good[:-1] + b', "a": %b}' % snippet, method)
        check(good[:-1] + b", %b}" % tool, method)
        check(good.replace(b'"messages"', tool + b', "messages"'), method)

    holds()


@pytest.mark.parametrize("method", FILES)
def test_ordinary_rows_are_taken_quickly(method: str) -> None:
    lines = (EXAMPLES / f"{FILES[method]}.jsonl").read_bytes().splitlines(keepends=True)

    assert all(map(quick_check(method), lines))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "assistant", "content": "b", "weight": 1, "name": "n"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": ""},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "1", "content": "c"},
                {"role": "assistant", "content": "b", "weight": 0},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"a": 1}}}],
            "parallel_tool_calls": False,
        },
    ],
    ids=["names and weights", "parts", "tools"],
)
def test_rows_with_all_that_a_chat_may_have_are_taken_quickly(row: dict[str, Any]) -> None:
    line = json.dumps(row).encode()

    assert quick_check("supervised")(line)
    assert is_row(line, "supervised")


FAULTY = {
    "dpo": [
        GOOD["dpo"].replace(b'"c"', b'"b"'),
        GOOD["dpo"].replace(b'"c"', b'" "'),
        GOOD["dpo"].replace(b'"user"', b'"assistant"'),
        GOOD["dpo"].replace(b'"input"', b'"answer"'),
    ],
    "supervised": [
        GOOD["supervised"].replace(b'"weight": 1', b'"weight": 0'),
        GOOD["supervised"].replace(b'"weight": 1', b'"weight": 1, "function_call": "x"'),
        GOOD["supervised"].replace(b'"user"', b'"robot"'),
        GOOD["supervised"].replace(b'"weight": 1', b'"weight": true'),
        GOOD["supervised"].replace(b'"content": "b"', b'"content": null'),
        GOOD["supervised"].replace(b'"a"', b'"\\ud800"'),
        GOOD["supervised"].replace(b'"a"', b'"\xff"'),
    ],
    "reinforcement": [
        GOOD["reinforcement"].replace(b"1.5e3", b"null"),
        GOOD["reinforcement"].replace(b'"user"', b'"system"'),
        GOOD["reinforcement"].replace(b"1.5e3", b"NaN"),
        GOOD["reinforcement"].replace(b'"facts"', b'"response_format"'),
    ],
}


@pytest.mark.parametrize(("method", "line"), [(method, line) for method, lines in FAULTY.items() for line in lines])
def test_a_fault_is_left_to_the_exact_reading(method: str, line: bytes) -> None:
    assert not is_row(line, method)
    assert not quick_check(method, NEEDED)(line)


@pytest.mark.parametrize("method", ROWS)
def test_a_report_is_the_same_without_the_quick_check(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.one_of(ROWS[method].map(lambda row: json.dumps(row).encode()), SNIPPETS, st.just(GOOD[method]))))
    def holds(lines: list[bytes]) -> None:
        with_it = validate(lines, method, NEEDED)
        with monkeypatch.context() as patch:
            patch.setattr("caesura.data.validate.quick_check", lambda *_: lambda _line: False)
            assert validate(lines, method, NEEDED) == with_it

    holds()
