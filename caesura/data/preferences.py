"""Lines of a preference file (DPO) → typed rows, or what is wrong with them. No I/O.

    {"input": {"messages": [{"role": "user", "content": "…"}], "tools": […], "parallel_tool_calls": true},
     "preferred_output": [{"role": "assistant", "content": "…"}],
     "non_preferred_output": [{"role": "assistant", "content": "…"}]}

The older names of the outputs, `preferred_completion` and `non_preferred_completion`, are read too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from caesura.data.lines import (
    OUTPUT_KEYS,
    PREFERENCE,
    Place,
    Problem,
    is_dict,
    parse_lines,
    refuse_extra_keys,
    without_nulls,
)
from caesura.data.messages import read_messages, read_parallel_tool_calls, read_tools
from caesura.data.render import template_messages

_ROW_KEYS = ("input", *OUTPUT_KEYS)
_INPUT_KEYS = ("messages", "tools", "parallel_tool_calls", "functions")
_OUTPUT_ROLES = ("assistant", "tool", "function")


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """Two answers to one prompt, of which the first is preferred. `line` is the 1-based line of the file."""

    line: int
    messages: list[dict[str, Any]]
    preferred: list[dict[str, Any]]
    non_preferred: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    parallel_tool_calls: bool


def parse_preferences(lines: Iterable[bytes]) -> Iterator[PreferenceRow | Problem]:
    """Each line's row, or its first problem, as `parse_lines` does."""
    return parse_lines(lines, PREFERENCE, read_preference)


def read_preference(row: dict[str, Any], place: Place) -> PreferenceRow:
    """The row of a line's object. Raises Fault with its first problem."""
    _refuse_other_keys(row, place)
    prompt, inside = _input(row, place)
    preferred_key, non_preferred_key = (_key(row, side, place) for side in ("preferred", "non_preferred"))
    messages, tools = _messages(prompt, inside), read_tools(prompt, inside)
    parallel_tool_calls = read_parallel_tool_calls(prompt, inside)
    preferred, non_preferred = (_output(row, key, place) for key in (preferred_key, non_preferred_key))
    # As the model will see them, so that a text and the list of its one part are the same.
    if template_messages(preferred) == template_messages(non_preferred):
        place.fail(
            f" has the same answer as '{preferred_key}' and as '{non_preferred_key}'",
            "Make the two differ, or remove the line: there is nothing to prefer.",
            non_preferred_key,
        )
    return PreferenceRow(place.line, messages, preferred, non_preferred, tools, parallel_tool_calls)


def _refuse_other_keys(row: dict[str, Any], place: Place) -> None:
    if not any(key in row for key in _ROW_KEYS):
        place.fail(
            " has none of 'input', 'preferred_output' and 'non_preferred_output'",
            f"Write each line as {PREFERENCE.example}.",
        )
    for key in _INPUT_KEYS:
        if key in row:
            place.fail(f" has '{key}' outside of 'input'", f"Put '{key}' into 'input'.", key)
    refuse_extra_keys(row, _ROW_KEYS, place, "a row of preference data")


def _input(row: dict[str, Any], place: Place) -> tuple[dict[str, Any], Place]:
    remedy = 'Write "input": {"messages": [{"role": "user", "content": "..."}]}.'
    if "input" not in row:
        place.fail(" has no 'input'", remedy, "input")
    if not is_dict(row["input"]):
        place.fail(" has an 'input' that is not a dictionary", remedy, "input")
    prompt, prompt_place = without_nulls(row["input"]), place.within("input", "input")
    refuse_extra_keys(prompt, _INPUT_KEYS, prompt_place, "the input")
    return prompt, prompt_place


def _messages(prompt: dict[str, Any], place: Place) -> list[dict[str, Any]]:
    messages = read_messages(prompt.get("messages"), "messages", place)
    if messages[-1]["role"] == "assistant":
        place.fail(
            f", message {len(messages)} is the assistant's, but the last message of an input is the one to be answered",
            "Remove it, or put it first in both outputs, with the weight 0 if it is not to be compared.",
            f"messages[{len(messages) - 1}].role",
        )
    return messages


def _key(row: dict[str, Any], side: str, place: Place) -> str:
    """The name under which the row has the output of the side."""
    name, older_name = f"{side}_output", f"{side}_completion"
    if name in row and older_name in row:
        place.fail(f" has both '{name}' and '{older_name}'", f"Remove '{older_name}'.", older_name)
    if name not in row and older_name not in row:
        place.fail(f" has no '{name}'", f'Write "{name}": [{{"role": "assistant", "content": "..."}}].', name)
    return name if name in row else older_name


def _output(row: dict[str, Any], key: str, place: Place) -> list[dict[str, Any]]:
    inside = place.within(key, "")
    messages = read_messages(row[key], key, inside, _OUTPUT_ROLES)
    for index, message in enumerate(messages):
        if message["role"] not in _OUTPUT_ROLES:
            inside.within(f"message {index + 1}", f"{key}[{index}]").fail(
                f" has the role '{message['role']}', but an output has only 'assistant' and 'tool'",
                "Put what comes before the answer into 'input'.",
                "role",
            )
    texts = [message for message in messages if message["role"] == "assistant" and _has_text(message)]
    if not texts:
        inside.fail(" has no assistant message with text", "Give the answer a text that is not empty.", key)
    if all(message.get("weight", 1) == 0 for message in texts):
        inside.fail(" has no text to compare: all of it has the weight 0", "Remove the weight 0 of one message.", key)
    return messages


def _has_text(message: dict[str, Any]) -> bool:
    content = message.get("content", "")
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    return any(text.strip() for text in texts)
