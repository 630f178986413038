from __future__ import annotations

import json
from functools import reduce
from typing import Any

import pytest

from caesura.data.lines import Problem
from caesura.data.prompts import Needed, PromptRow, parse_prompts
from caesura.data.validate import validate

ASKED = [{"role": "user", "content": "1 + 1?"}]
SCHEMA = {"name": "n", "schema": {"const": None}}
DEEP = {"name": "n", "schema": reduce(lambda inner, _: {"not": inner}, range(100), {})}


def parse(*rows: Any, needed: tuple[Needed, ...] = ()) -> list[PromptRow | Problem]:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return list(parse_prompts(lines, needed))


def problem(row: Any, needed: tuple[Needed, ...] = ()) -> Problem:
    (found,) = parse(row, needed=needed)
    assert isinstance(found, Problem), found
    return found


def test_a_row_is_its_conversation_and_all_of_it_is_for_graders() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = {"messages": ASKED, "tools": tools, "answer": 2, "facts": {"deep": [1]}, "empty": None}

    (parsed,) = parse(row)

    assert parsed == PromptRow(1, ASKED, tools, {name: value for name, value in row.items() if name != "empty"})


@pytest.mark.parametrize("role", ["user", "developer"])
def test_the_last_message_asks(role: str) -> None:
    (parsed,) = parse({"messages": [{"role": "system", "content": "x"}, {"role": role, "content": "y"}]})

    assert isinstance(parsed, PromptRow)


@pytest.mark.parametrize("role", ["system", "assistant", "tool"])
def test_a_last_message_that_does_not_ask_is_told_with_what_to_do(role: str) -> None:
    found = problem({"messages": [*ASKED, {"role": role, "content": "2"}]})

    assert found.line == 1
    assert found.field == "messages[1].role"
    assert found.message == (
        f"Example 1, message 2 is the last one and has the role '{role}', "
        "but the last message of a prompt is the user's"
    )
    assert '"answer": "..."' in found.remedy


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b"{", "cannot be parsed"),
        ([], "is not a dictionary"),
        ({}, "has no messages"),
        ({"messages": []}, "has no messages"),
        ({"messages": ASKED, "tools": 5}, "has 'tools' that are not a list"),
        ({"messages": ASKED, "response_format": "json"}, "has a 'response_format' that is none"),
        ({"messages": ASKED, "response_format": {"type": "json_schema"}}, "has a 'response_format' that is none"),
        ({"messages": ASKED, "response_format": {"type": "text", "json_schema": SCHEMA}}, "belongs to the type"),
        ({"messages": ASKED, "response_format": {"type": "json_schema", "json_schema": {}}}, "json_schema.name: "),
        ({"messages": ASKED, "response_format": {"type": "json_schema", "json_schema": DEEP}}, "nested 100 deep"),
        ({"messages": ASKED, "parallel_tool_calls": "no"}, "has a 'parallel_tool_calls' that is not a boolean"),
    ],
)
def test_a_faulty_row_is_told(row: Any, words: str) -> None:
    assert words in problem(row).message


@pytest.mark.parametrize(
    ("steps", "is_there"),
    [
        (("answer",), True),
        (("facts", "deep"), True),
        (("facts", "deep", 0), True),
        (("facts", "deep", -1, "x"), True),
        (("messages", 0, "content"), True),
        (("facts", "deep", 1), False),
        (("facts", "shallow"), False),
        (("answer", "x"), False),
        (("Answer",), False),
        (("facts", "0"), False),
    ],
)
def test_what_a_grader_names_must_be_there(steps: tuple[str | int, ...], is_there: bool) -> None:
    row = {"messages": ASKED, "answer": "2", "facts": {"deep": [{"x": 1}]}}

    (found,) = parse(row, needed=(Needed(steps, "item.path"),))

    assert isinstance(found, PromptRow) == is_there
    if isinstance(found, Problem):
        assert "has no 'path', which the grader names as '{{ item.path }}'" in found.message


def test_a_response_format_of_a_row_is_kept() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}

    (parsed,) = parse({"messages": ASKED, "response_format": wanted})

    assert isinstance(parsed, PromptRow)
    assert parsed.response_format == wanted


@pytest.mark.parametrize(
    ("format", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": SCHEMA}, SCHEMA["schema"]),
    ],
)
def test_answers_are_held_to_what_the_format_means(format: Any, schema: Any) -> None:
    (parsed,) = parse({"messages": ASKED, "response_format": format})

    assert isinstance(parsed, PromptRow)
    assert parsed.json_schema == schema


def test_the_older_functions_are_tools() -> None:
    (parsed,) = parse({"messages": ASKED, "functions": [{"name": "f"}]})

    assert isinstance(parsed, PromptRow)
    assert parsed.tools == [{"type": "function", "function": {"name": "f"}}]


def test_a_file_of_prompts_given_to_another_method_is_told_and_the_other_way_round() -> None:
    prompts = [json.dumps({"messages": ASKED, "answer": "2"}).encode()] * 10
    chats = [json.dumps({"messages": [*ASKED, {"role": "assistant", "content": "2"}]}).encode()] * 10

    assert validate(prompts, "reinforcement").error("training_file", "file-1") is None
    for lines, method in ((prompts, "supervised"), (prompts, "dpo"), (chats, "reinforcement")):
        error = validate(lines, method).error("training_file", "file-1")
        assert error is not None
        assert error.code == "invalid_training_file"
