"""Lines of a reinforcement file → typed rows, or what is wrong with them. No I/O.

    {"messages": [{"role": "user", "content": "…"}], "tools": […], "answer": "42"}

Whatever else a line has, such as `answer` here, is for graders, which call it `item.answer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from pydantic import ValidationError

from caesura.data.lines import PROMPTS, Place, Problem, is_dict, is_list, parse_lines
from caesura.data.messages import read_messages, read_parallel_tool_calls, read_tools
from caesura.schema.chat import ANY_OBJECT, ResponseFormat

ASKING_ROLES = ("user", "developer")


@dataclass(frozen=True, slots=True)
class Needed:
    """A path into a row that a grader names: keys of objects and indices of lists, and how the grader spells it."""

    steps: tuple[str | int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A conversation that waits for an answer. `line` is the 1-based line of the file, `item` the whole row."""

    line: int
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    item: dict[str, Any]
    response_format: dict[str, Any] | None = None

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """What its answers are held to; None: they are plain text."""
        if self.response_format is None or self.response_format["type"] == "text":
            return None
        return self.response_format["json_schema"]["schema"] if "json_schema" in self.response_format else ANY_OBJECT


def parse_prompts(lines: Iterable[bytes], needed: Sequence[Needed] = ()) -> Iterator[PromptRow | Problem]:
    """Each line's row, or its first problem, as `parse_lines` does. A row that lacks what is `needed` is one."""
    return parse_lines(lines, PROMPTS, partial(read_prompt, needed=needed))


def read_prompt(row: dict[str, Any], place: Place, needed: Sequence[Needed]) -> PromptRow:
    """The row of a line's object. Raises Fault with its first problem."""
    messages = read_messages(row.get("messages"), "messages", place)
    last = messages[-1]["role"]
    if last not in ASKING_ROLES:
        place.fail(
            f", message {len(messages)} is the last one and has the role '{last}', but the last message of a prompt is "
            "the user's",
            "End the messages where the model is to answer; keep a known answer under a key of its own, for the "
            'grader: "answer": "...".',
            f"messages[{len(messages) - 1}].role",
        )
    tools = read_tools(row, place)
    read_parallel_tool_calls(row, place)
    for path in needed:
        if not has_steps(row, path.steps):
            place.fail(
                f" has no '{path.text.removeprefix('item.')}', which the grader names as '{{{{ {path.text} }}}}'",
                "Add it to the line, or take it out of the grader.",
                path.text.removeprefix("item."),
            )
    return PromptRow(place.line, messages, tools, row, _response_format(row, place))


def has_steps(value: object, steps: Sequence[str | int]) -> bool:
    """Whether the steps lead somewhere in the value."""
    if not steps:
        return True
    step, *rest = steps
    if isinstance(step, str):
        return is_dict(value) and step in value and has_steps(value[step], rest)
    return is_list(value) and -len(value) <= step < len(value) and has_steps(value[step], rest)


def _response_format(row: dict[str, Any], place: Place) -> dict[str, Any] | None:
    """As in Chat Completions; a row's own stands in the place of the job's."""
    if "response_format" not in row:
        return None
    try:
        format = ResponseFormat.model_validate(row["response_format"])
    except ValidationError as error:
        fault = error.errors()[0]
        _refuse_format(": ".join([".".join(map(str, fault["loc"])), fault["msg"]]).removeprefix(": "), place)
    if (format.type == "json_schema") != (format.json_schema is not None):
        _refuse_format("'json_schema' belongs to the type 'json_schema'", place)
    return format.model_dump(exclude_none=True, by_alias=True)


def _refuse_format(reason: str, place: Place) -> NoReturn:
    place.fail(
        f" has a 'response_format' that is none: {reason}",
        'Write it as {"type": "json_schema", "json_schema": {"name": "...", "schema": {...}}}.',
        "response_format",
    )
