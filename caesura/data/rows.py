"""Lines of a supervised training file → typed rows, or what is wrong with them. No I/O.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…", "weight": 1}],
     "tools": [{"type": "function", "function": {"name": "…", "parameters": {…}}}],
     "parallel_tool_calls": true}

The deprecated `functions`, `function_call` and the role `function` are read as their successors `tools`,
`tool_calls` and `tool`. A key whose value is null counts as absent. Not covered: images, audio, and whether
a text holds the special tokens of a model (no model is known here).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

from caesura.errors import InvalidData

_BOM = b"\xef\xbb\xbf"
_ROW_KEYS = ("messages", "tools", "parallel_tool_calls", "functions")
#: From each role, the keys that its messages may have.
_MESSAGE_KEYS = {
    "system": ("role", "content", "name"),
    "developer": ("role", "content", "name"),
    "user": ("role", "content", "name"),
    "assistant": ("role", "content", "name", "weight", "tool_calls", "function_call"),
    "tool": ("role", "content", "name", "tool_call_id"),
    "function": ("role", "content", "name"),
}
_PREFERENCE_KEYS = ("preferred_output", "non_preferred_output", "preferred_completion", "non_preferred_completion")
_IMAGE_PARTS = ("image_url", "input_image", "image")


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation to learn from. `line` is the 1-based line of the file."""

    line: int
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    parallel_tool_calls: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a line. `line` is 1-based; `field` is a path with 0-based indices, `messages[1].role`."""

    line: int
    message: str
    remedy: str
    field: str | None


class _Fault(Exception):
    """The first problem of a line, on its way up to `parse_rows`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.message)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a file: for people (`Example 3, message 2`) and as a path (`messages[1]`; the row itself is empty)."""

    line: int
    name: str
    path: str

    def fail(self, text: str, remedy: str, key: str | None = None) -> NoReturn:
        self.fail_verbatim(f"{self.name}{text}", remedy, key)

    def fail_verbatim(self, text: str, remedy: str, key: str | None = None) -> NoReturn:
        path = ".".join(part for part in (self.path, key) if part)
        raise _Fault(Problem(self.line, text, remedy, path or None))


def parse_rows(lines: Iterable[bytes]) -> Iterator[Row | Problem]:
    """Each line's row, or its first problem. Blank lines are skipped, yet counted. Raises nothing of its own."""
    for number, line in enumerate(lines, start=1):
        content = line.removeprefix(_BOM) if number == 1 else line
        if not content.strip():
            continue
        place = _Place(number, f"Example {number}", "")
        try:
            yield _row(_load(content, place), place)
        except _Fault as fault:
            yield fault.problem


def load_line(line: bytes) -> object:
    """The JSON value of a line.

    Raises `InvalidData` with the parser's words: no UTF-8, no JSON, NaN or Infinity, half of a surrogate pair.
    """
    try:
        text = line.decode("utf-8")
        value: object = json.loads(text.rstrip("\r\n"), parse_constant=_refuse_constant)
        if "\\u" in text:  # Only an escape can smuggle in half of a surrogate pair, which no tokenizer takes.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidData(f"line is not valid UTF-8: {error}") from error
    except UnicodeEncodeError as error:
        raise InvalidData(f"line holds half of a surrogate pair: {error}") from error
    except RecursionError as error:
        raise InvalidData("line contains invalid json: it is nested too deeply") from error
    except ValueError as error:
        raise InvalidData(f"line contains invalid json: {error}") from error
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _load(content: bytes, place: _Place) -> object:
    try:
        return load_line(content)
    except InvalidData as error:
        place.fail(
            f" cannot be parsed. Error: {error.message} (line {place.line})",
            "Write one JSON object on each line, in UTF-8 and without line breaks inside it.",
        )


def _row(value: object, place: _Place) -> Row:
    if not _is_dict(value):
        place.fail(" is not a dictionary", 'Write each line as {"messages": [...]}.')
    row = _without_nulls(value)
    if "messages" not in row:
        _fail_without_messages(row, place)
    _refuse_extra_keys(row, _ROW_KEYS, place, "a row of supervised data")
    messages = row["messages"]
    if not _is_list(messages) or not messages:
        place.fail(" has no messages: 'messages' must be a list of at least one", "Add messages.", "messages")
    checked = [_message(message, _message_place(place, index)) for index, message in enumerate(messages)]
    if not any(message["role"] == "assistant" and message.get("weight", 1) != 0 for message in checked):
        place.fail(
            " has no assistant message to learn from",
            "Add an assistant message, or remove the weight 0 of one.",
            "messages",
        )
    return Row(place.line, checked, _tools(row, place), _parallel_tool_calls(row, place))


def _fail_without_messages(row: dict[str, Any], place: _Place) -> NoReturn:
    remedy = 'Write each line as {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}.'
    if "input" in row and any(key in row for key in _PREFERENCE_KEYS):
        place.fail(
            " is in the preference format, but the specified fine-tuning job is using 'supervised' as the"
            " training method",
            'A supervised job takes chat messages: write each line as {"messages": [...]}.',
        )
    if "prompt" in row and "completion" in row:
        place.fail(" is a prompt/completion pair, but the model learns from chat messages", remedy)
    place.fail_verbatim(
        f"Unexpected file format, expected either prompt/completion pairs or chat messages. (line {place.line})",
        remedy,
    )


def _message_place(place: _Place, index: int) -> _Place:
    return _Place(place.line, f"{place.name}, message {index + 1}", f"messages[{index}]")


def _message(value: object, place: _Place) -> dict[str, Any]:
    if not _is_dict(value):
        place.fail(" is not a dictionary", 'Write each message as {"role": "...", "content": "..."}.')
    message = _without_nulls(value)
    role = _role(message, place)
    _refuse_extra_keys(message, _MESSAGE_KEYS[role], place, f"a message of the role '{role}'")
    for key in ("name", "tool_call_id"):
        if not isinstance(message.get(key, ""), str):
            place.fail(f" has a '{key}' that is not a string", f"Write '{key}' as a string.", key)
    _check_content(message, place)
    _check_weight(message, place)
    if "tool_calls" in message:
        _check_tool_calls(message["tool_calls"], place)
    return _modernized(message, place)


def _role(message: dict[str, Any], place: _Place) -> str:
    legal = ", ".join(f"'{role}'" for role in _MESSAGE_KEYS)
    if "role" not in message:
        place.fail(" Discriminator 'role' is missing in value", f"Give each message one of: {legal}.", "role")
    role = message["role"]
    if not isinstance(role, str) or role not in _MESSAGE_KEYS:
        place.fail(f" has the unknown role {_shown(role)}", f"The role must be one of: {legal}.", "role")
    return role


def _check_content(message: dict[str, Any], place: _Place) -> None:
    if "content" not in message:
        if message["role"] == "assistant" and ("tool_calls" in message or "function_call" in message):
            return
        place.fail(
            " has no content",
            "Give it a 'content'; only an assistant message with 'tool_calls' may go without.",
            "content",
        )
    content = message["content"]
    if isinstance(content, str):
        return
    if not _is_list(content) or not content:
        place.fail(
            f" has a content that is neither a string nor a list of parts: {_shown(content)}",
            "Write 'content' as a string.",
            "content",
        )
    for index, part in enumerate(content):
        _check_part(part, index, place)


def _check_part(part: object, index: int, place: _Place) -> None:
    key = f"content[{index}]"
    remedy = 'Write \'content\' as a string, or its parts as {"type": "text", "text": "..."}.'
    kind = part.get("type") if _is_dict(part) else None
    if kind in _IMAGE_PARTS:
        place.fail(f" has a part of type {_shown(kind)}: images are not supported", "Remove the image.", key)
    if kind != "text":
        place.fail(f" has a part of type {_shown(kind)}: only text is supported", remedy, key)
    if not _is_dict(part) or not isinstance(part.get("text"), str):
        place.fail(" has a text part without text", remedy, key)


def _check_weight(message: dict[str, Any], place: _Place) -> None:
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        place.fail(
            f" has the weight {_shown(weight)}",
            "The weight must be 0 (not learned) or 1 (learned).",
            "weight",
        )


def _check_tool_calls(calls: object, place: _Place) -> None:
    if not _is_list(calls) or not calls:
        place.fail(
            " has no tool calls: 'tool_calls' must be a list of at least one", "Remove 'tool_calls'.", "tool_calls"
        )
    for index, call in enumerate(calls):
        key = f"tool_calls[{index}]"
        if not _is_dict(call) or call.get("type") != "function":
            place.fail(
                f" has a tool call {index + 1} that is not of type 'function'",
                'Write each tool call as {"id": "...", "type": "function", "function": {...}}.',
                key,
            )
        if not isinstance(call.get("id") or "", str):
            place.fail(f" has a tool call {index + 1} whose id is not a string", "Write it as a string.", key)
        _check_function(call.get("function"), place, f"tool call {index + 1}", f"{key}.function")


def _check_function(function: object, place: _Place, name: str, key: str) -> None:
    remedy = 'Write "function": {"name": "...", "arguments": "{\\"x\\": 1}"}; the arguments are JSON as a string.'
    if not _is_dict(function):
        place.fail(f" has a {name} without a function", remedy, key)
    for part in ("name", "arguments"):
        if not isinstance(function.get(part), str):
            place.fail(f" has a {name} whose function's {part} is not a string", remedy, f"{key}.{part}")


def _modernized(message: dict[str, Any], place: _Place) -> dict[str, Any]:
    """The message with `function_call` and the role `function` in their present form."""
    if message["role"] == "function":
        return message | {"role": "tool"}
    if "function_call" not in message:
        return message
    if "tool_calls" in message:
        place.fail(" has both 'tool_calls' and 'function_call'", "Remove 'function_call'.", "function_call")
    function = message["function_call"]
    _check_function(function, place, "function_call", "function_call")
    rest = {key: value for key, value in message.items() if key != "function_call"}
    return rest | {"tool_calls": [{"type": "function", "function": function}]}


def _tools(row: dict[str, Any], place: _Place) -> list[dict[str, Any]] | None:
    if "tools" in row and "functions" in row:
        place.fail(" has both 'tools' and 'functions'", "Remove 'functions'.", "functions")
    key = "functions" if "functions" in row else "tools"
    listed = row.get(key, [])
    if not _is_list(listed):
        place.fail(f" has '{key}' that are not a list", f"Write '{key}' as a list.", key)
    tools = [{"type": "function", "function": tool} for tool in listed] if key == "functions" else listed
    for index, tool in enumerate(tools):
        _check_tool(tool, index, f"{key}[{index}]", place)
    return tools or None


def _check_tool(tool: object, index: int, key: str, place: _Place) -> None:
    remedy = 'Write each tool as {"type": "function", "function": {"name": "...", "parameters": {...}}}.'
    if not _is_dict(tool) or tool.get("type") != "function":
        place.fail(f" has a tool {index + 1} that is not of type 'function'", remedy, key)
    function = tool.get("function")
    if not _is_dict(function) or not isinstance(function.get("name"), str):
        place.fail(f" has a tool {index + 1} whose function has no name", remedy, key)
    if not isinstance(function.get("description") or "", str):
        place.fail(f" has a tool {index + 1} whose description is not a string", remedy, key)
    if not _is_dict(function.get("parameters") or {}):
        place.fail(f" has a tool {index + 1} whose parameters are not a JSON schema", remedy, key)


def _parallel_tool_calls(row: dict[str, Any], place: _Place) -> bool:
    value = row.get("parallel_tool_calls", True)
    if not isinstance(value, bool):
        key = "parallel_tool_calls"
        place.fail(f" has a '{key}' that is not a boolean: {_shown(value)}", "Write true or false.", key)
    return value


def _refuse_extra_keys(value: dict[str, Any], legal: tuple[str, ...], place: _Place, owner: str) -> None:
    for key in value:
        if key not in legal:
            keys = ", ".join(f"'{name}'" for name in legal)
            place.fail(f" contains an extra {_shown(key)}.", f"Remove it: {owner} may have {keys}.", key)


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def _is_dict(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _shown(value: object) -> str:
    """The value in JSON, cut to 40 characters; containers are only named, however deep they are."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"
