"""Lines of a supervised training file → typed rows, or what is wrong with them. No I/O.

{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…", "weight": 1}],
 "tools": [{"type": "function", "function": {"name": "…", "parameters": {…}}}],
 "parallel_tool_calls": true}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from caesura.data.lines import CHAT, Place, Problem, parse_lines, refuse_extra_keys
from caesura.data.messages import read_messages, read_parallel_tool_calls, read_tools

_ROW_KEYS = ("messages", "tools", "parallel_tool_calls", "functions")


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation to learn from. `line` is the 1-based line of the file."""

    line: int
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    parallel_tool_calls: bool


def parse_rows(lines: Iterable[bytes]) -> Iterator[Row | Problem]:
    """Each line's row, or its first problem, as `parse_lines` does."""
    return parse_lines(lines, CHAT, read_chat)


def read_chat(row: dict[str, Any], place: Place) -> Row:
    """The row of a line's object. Raises Fault with its first problem."""
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
    if "prompt" in row and "completion" in row:
        place.fail(" is a prompt/completion pair, but the model learns from chat messages", remedy)
    place.fail_verbatim(
        f"Unexpected file format, expected either prompt/completion pairs or chat messages. (line {place.line})",
        remedy,
    )
