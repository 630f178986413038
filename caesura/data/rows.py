"""Lines of a supervised training file → typed rows, or what is wrong with them. No I/O.

{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…", "weight": 1}],
 "tools": [{"type": "function", "function": {"name": "…", "parameters": {…}}}],
 "parallel_tool_calls": true}

or, in the older format of text, {"prompt": "…", "completion": "…"}. A file may hold both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from caesura.data.lines import CHAT, TEXT, Place, Problem, parse_lines, refuse_extra_keys, shown
from caesura.data.messages import read_messages, read_parallel_tool_calls, read_tools

_ROW_KEYS = ("messages", "tools", "parallel_tool_calls", "functions")
_TEXT_KEYS = ("prompt", "completion")


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation to learn from. `line` is the 1-based line of the file."""

    line: int
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    parallel_tool_calls: bool


@dataclass(frozen=True, slots=True)
class TextRow:
    """A text, and how to go on from it. `line` is the 1-based line of the file."""

    line: int
    prompt: str
    completion: str


def parse_rows(lines: Iterable[bytes]) -> Iterator[Row | TextRow | Problem]:
    """Each line's row, or its first problem, as `parse_lines` does."""
    return parse_lines(lines, CHAT, read_example)


def read_example(row: dict[str, Any], place: Place) -> Row | TextRow:
    """The row of a line's object. Raises Fault with its first problem."""
    return _read_text(row, place) if place.format is TEXT else _read_chat(row, place)


def _read_text(row: dict[str, Any], place: Place) -> TextRow:
    refuse_extra_keys(row, _TEXT_KEYS, place, "a prompt/completion pair")
    for key in _TEXT_KEYS:
        if not isinstance(row[key], str):
            place.fail(f" has a '{key}' that is not a string: {shown(row[key])}", f"Write '{key}' as a string.", key)
    if not row["completion"]:
        place.fail(" has an empty completion", "Write what the model is to say after the prompt.", "completion")
    return TextRow(place.line, row["prompt"], row["completion"])


def _read_chat(row: dict[str, Any], place: Place) -> Row:
    if "messages" not in row:
        _fail_without_messages(row, place)
    refuse_extra_keys(row, _ROW_KEYS, place, "a row of supervised data")
    messages = read_messages(row["messages"], "messages", place)
    if not any(message["role"] == "assistant" and message.get("weight", 1) != 0 for message in messages):
        place.fail(
            " has no assistant message to learn from",
            "Add an assistant message, or remove the weight 0 of one.",
            "messages",
        )
    return Row(place.line, messages, read_tools(row, place), read_parallel_tool_calls(row, place))


def _fail_without_messages(row: dict[str, Any], place: Place) -> NoReturn:
    remedy = 'Write each line as {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}.'
    place.fail_verbatim(
        f"Unexpected file format, expected either prompt/completion pairs or chat messages. (line {place.line})",
        remedy,
    )
