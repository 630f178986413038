"""Is a line clearly a good row? What is answered with yes, `read_line` takes as well; no may mean either.

A file of 512 MB has half a million lines, nearly all of them good. For these no place in the file needs to be named and
no row is kept, which makes validation five to ten times as fast (docs/benchmarks.md). No I/O.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# (what JSON holds is of any type until it has been looked at)
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic_core import from_json

from caesura.data.lines import OUTPUT_KEYS
from caesura.data.messages import MESSAGE_KEYS, schema_fault
from caesura.data.prompts import ASKING_ROLES, Needed, has_steps

IsGood = Callable[[bytes], bool]

_NUM_PLAIN_KEYS = 2
_NEVER_PLAIN = ("input", "functions", "response_format", *OUTPUT_KEYS)


def quick_check(method: str, needed: Sequence[Needed] = ()) -> IsGood:
    """The check of a training method's lines. `needed`: as in `parse_prompts`."""
    if method == "reinforcement":
        return partial(_is_prompt, needed=needed)
    return {"supervised": _is_chat, "dpo": _is_preference}[method]


def _load(line: bytes) -> dict[str, Any] | None:
    try:
        # Strict where Python's parser is not (NaN, half of a surrogate pair), and three times as fast.
        row: object = from_json(line, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        return None
    return row if type(row) is dict else None


def _is_chat(line: bytes) -> bool:
    row = _load(line)
    if row is not None and len(row) == _NUM_PLAIN_KEYS and type(row.get("prompt")) is str:
        return type(row.get("completion")) is str and bool(row["completion"])
    if row is None or "messages" not in row or not (len(row) == 1 or _has_good_tools(row, num_others=1)):
        return False
    return _count_learned(row["messages"]) > 0


def _is_preference(line: bytes) -> bool:
    row = _load(line)
    if row is None or len(row) != 3 or not isinstance(row.get("input"), dict):
        return False
    prompt: dict[str, Any] = row["input"]
    if "messages" not in prompt or not (len(prompt) == 1 or _has_good_tools(prompt, num_others=1)):
        return False
    if _count_learned(prompt["messages"]) < 0 or prompt["messages"][-1]["role"] == "assistant":
        return False
    preferred, rejected = _single_answer(row, "preferred_output"), _single_answer(row, "non_preferred_output")
    return preferred is not None and rejected is not None and preferred != rejected


def _is_prompt(line: bytes, needed: Sequence[Needed]) -> bool:
    row = _load(line)
    if row is None or None in row.values() or any(key in row for key in _NEVER_PLAIN):
        return False
    if _count_learned(row.get("messages")) < 0 or row["messages"][-1]["role"] not in ASKING_ROLES:
        return False
    return _has_good_tools(row) and all(has_steps(row, path.steps) for path in needed)


def _single_answer(row: dict[str, Any], key: str) -> str | None:
    """The text of an output that is nothing but one."""
    if key not in row:
        return None
    output = row[key]
    if _count_learned(output) != 1 or len(output) != 1 or len(output[0]) != _NUM_PLAIN_KEYS:
        return None
    text = output[0].get("content")
    return text if type(text) is str and text.strip() else None


def _count_learned(messages: Any) -> int:
    """How many of the messages are the assistant's and learned; -1 where they are not clearly good."""
    if type(messages) is not list or not messages:
        return -1
    num_learned = 0
    for message in messages:
        if type(message) is not dict:
            return -1
        role, content = message.get("role"), message.get("content")
        keys = MESSAGE_KEYS.get(role) if type(role) is str else None
        if keys is None:
            return -1
        if not (type(content) is str and len(message) == _NUM_PLAIN_KEYS) and not _is_good_message(message, keys):
            return -1
        num_learned += role == "assistant" and message.get("weight") != 0
    return num_learned


def _is_good_message(message: dict[str, Any], keys: Sequence[str]) -> bool:
    """Whether a message with more than a role and a text is good. `keys`: those that its role allows."""
    for key, value in message.items():
        if key not in keys or key == "function_call":
            return False
        if key == "content":
            if value is None and "tool_calls" not in message:
                return False
            if not (value is None or type(value) is str or _are_texts(value)):
                return False
        elif key == "weight":
            if type(value) is not int or value not in (0, 1):
                return False
        elif key == "tool_calls":
            if type(value) is not list or not value or not all(map(_is_good_call, value)):
                return False
        elif type(value) is not str:
            return False
    return "content" in message or "tool_calls" in message


def _are_texts(parts: Any) -> bool:
    return (
        type(parts) is list
        and bool(parts)
        and all(type(part) is dict and part.get("type") == "text" and type(part.get("text")) is str for part in parts)
    )


def _is_good_call(call: Any) -> bool:
    if type(call) is not dict or call.get("type") != "function" or type(call.get("id", "")) is not str:
        return False
    function = call.get("function")
    return type(function) is dict and type(function.get("name")) is str and type(function.get("arguments")) is str


def _has_good_tools(row: dict[str, Any], num_others: int | None = None) -> bool:
    """Whether `tools` and `parallel_tool_calls` are good, and all that there is beside `num_others` keys."""
    tools = row.get("tools", ())
    if "tools" in row and not (type(tools) is list and all(map(_is_good_tool, tools))):
        return False
    if type(row.get("parallel_tool_calls", True)) is not bool:
        return False
    return num_others is None or len(row) == num_others + ("tools" in row) + ("parallel_tool_calls" in row)


def _is_good_tool(tool: Any) -> bool:
    function = tool.get("function") if type(tool) is dict and tool.get("type") == "function" else None
    return (
        type(function) is dict
        and type(function.get("name")) is str
        and type(function.get("description", "")) is str
        and type(parameters := function.get("parameters", {})) is dict
        and schema_fault(parameters) is None
    )
