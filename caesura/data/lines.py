"""Lines of a JSONL file → its rows' JSON objects, or what is wrong with them and where. No I/O.

A key whose value is null counts as absent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, Self, TypeGuard, TypeVar

from caesura.errors import InvalidData

RowT = TypeVar("RowT")

OUTPUT_KEYS = ("preferred_output", "preferred_completion", "non_preferred_output", "non_preferred_completion")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Format:
    """What the files of a training method hold: OpenAI's name for it, and how a line looks."""

    method: str
    name: str
    example: str


CHAT = Format("supervised", "fine-tune-chat", '{"messages": [...]}')
#: The older one, of text.
TEXT = Format("supervised", "fine-tune-completion", '{"prompt": "...", "completion": "..."}')
PREFERENCE = Format(
    "dpo",
    "fine-tune-preference",
    '{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}',
)


PROMPTS = Format("reinforcement", "fine-tune-prompts", '{"messages": [...], "answer": ...}')


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a line. `line` is 1-based; `field` is a path with 0-based indices, `messages[1].role`.

    `format` is the line's, faulty as it is; None where it cannot be told.
    """

    line: int
    message: str
    remedy: str
    field: str | None
    format: Format | None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The problem that `asdict` made the value of."""
        own: dict[str, Any] = value | {"format": None if value["format"] is None else Format(**value["format"])}
        return cls(**own)


class Fault(Exception):
    """The first problem of a line, on its way up to `parse_lines`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.message)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a file: for people (`Example 3, message 2`) and as a path (`messages[1]`; the row itself is empty)."""

    line: int
    name: str
    path: str = ""
    format: Format | None = None

    def within(self, name: str, key: str) -> Place:
        """A place in this one."""
        return Place(self.line, f"{self.name}, {name}", self._path(key), self.format)

    def fail(self, text: str, remedy: str, key: str = "") -> NoReturn:
        self.fail_verbatim(f"{self.name}{text}", remedy, key)

    def fail_verbatim(self, text: str, remedy: str, key: str = "") -> NoReturn:
        raise Fault(Problem(self.line, text, remedy, self._path(key) or None, self.format))

    def _path(self, key: str) -> str:
        return ".".join(part for part in (self.path, key) if part)


def parse_lines(
    lines: Iterable[bytes], expected: Format, read: Callable[[dict[str, Any], Place], RowT]
) -> Iterator[RowT | Problem]:
    """What `read` makes of each line's object, or its first problem; lines of another format are one.

    Blank lines are skipped, yet counted. Raises nothing of its own.
    """
    for number, line in enumerate(lines, start=1):
        item = read_line(number, line, expected, read)
        if item is not None:
            yield item


def read_line(
    number: int, line: bytes, expected: Format, read: Callable[[dict[str, Any], Place], RowT]
) -> RowT | Problem | None:
    """What `read` makes of the object in the 1-based line, or its first problem; None where the line is blank."""
    content = line.removeprefix(_BOM) if number == 1 else line
    if not content.strip():
        return None
    try:
        row, place = _load(content, Place(number, f"Example {number}"), expected)
        return read(row, place)
    except Fault as fault:
        return fault.problem


def load_line(line: bytes) -> object:
    """The JSON value of a line.

    Raises `InvalidData` with the parser's words: no UTF-8, no JSON, NaN or Infinity, half of a surrogate pair.
    """
    try:
        text = line.decode("utf-8")
        value: object = _parse(text.rstrip("\r\n"))
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


#: `json.loads` makes a new one for every line, which takes longer than to read it.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _parse(text: str) -> object:
    # That of a byte order mark is a fault of its own, with words of its own.
    return json.loads(text) if text.startswith("\ufeff") else _DECODER.decode(text)


def _load(content: bytes, place: Place, expected: Format) -> tuple[dict[str, Any], Place]:
    """The line's object, and its place with the format."""
    try:
        value = load_line(content)
    except InvalidData as error:
        place.fail(
            f" cannot be parsed. Error: {error.message} (line {place.line})",
            "Write one JSON object on each line, in UTF-8 and without line breaks inside it.",
        )
    if not is_dict(value):
        place.fail(" is not a dictionary", f"Write each line as {expected.example}.")
    row = without_nulls(value)
    place = Place(place.line, place.name, place.path, _format(row, expected))
    if place.format is not None and place.format.method != expected.method:
        place.fail(
            f" is in the {place.format.name} format, but the specified fine-tuning job is using '{expected.method}' as"
            " the training method",
            f"Write each line as {expected.example}.",
        )
    return row, place


def _format(row: dict[str, Any], expected: Format) -> Format | None:
    """Chats and prompts look alike: what is expected decides between them."""
    has_output = any(key in row for key in OUTPUT_KEYS)
    if "input" in row and has_output:
        return PREFERENCE
    if "input" in row or has_output:
        return None
    if "messages" not in row:
        return TEXT if "prompt" in row and "completion" in row else None
    return PROMPTS if expected is PROMPTS else CHAT


def refuse_extra_keys(value: dict[str, Any], legal: tuple[str, ...], place: Place, owner: str) -> None:
    for key in value:
        if key not in legal:
            keys = ", ".join(f"'{name}'" for name in legal)
            place.fail(f" contains an extra {shown(key)}.", f"Remove it: {owner} may have {keys}.", key)


def without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def is_dict(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def shown(value: object) -> str:
    """The value in JSON, cut to 40 characters; containers are only named, however deep they are."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"
