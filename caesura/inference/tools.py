"""Tool calls as models write them: the format of a chat template, and the calls in the text of an answer.

    hermes    <tool_call>{"name": "f", "arguments": {…}}</tool_call>, again for each call
              (Qwen 2.5 and 3, Hermes, caesura-tiny)
    mistral   [TOOL_CALLS][{"name": "f", "arguments": {…}}, …]   (the tokenizers v3 to v7)
    llama     {"name": "f", "parameters": {…}}; …   as the whole answer, perhaps after <|python_tag|>
              (Llama 3.1 to 3.3)

Not covered: calls that are not JSON, such as Llama's built-in tools, Mistral's `name[ARGS]{…}` and Qwen-Coder's tags.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

_WHITESPACE = " \t\r\n"
_ARGUMENTS_KEYS = ("arguments", "parameters")
_CLOSING = {"{": "}", "[": "]"}
#: What stands between the strings and brackets of arguments, beside letters and digits.
_BETWEEN = frozenset(_WHITESPACE + ",:+-._")

_T = TypeVar("_T")
#: Takes an answer's characters one by one, and ends with a value.
_Reading = Generator[None, str, _T]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A block of calls is `begin`, `opening`, calls with `separator` between them, `end`.

    A call is an object with a name and arguments, in either order; what other keys hold is not told.
    """

    name: str
    #: Patterns that are all found in a chat template of this format.
    signs: tuple[str, ...]
    begin: str
    #: Whether an answer that begins with an object may be a block without its `begin`.
    is_begin_optional: bool = field(default=False, kw_only=True)
    opening: str = field(default="", kw_only=True)
    #: Empty: a block is one call, and an answer may hold several blocks.
    separator: str = field(default="", kw_only=True)
    #: Empty: the block ends with the answer.
    end: str = field(default="", kw_only=True)
    #: As the chat template has it. A model may have learned the other word elsewhere: both are read.
    arguments_key: Literal["arguments", "parameters"] = field(default="arguments", kw_only=True)
    #: What may be special tokens of a tokenizer, and is to stay in the text that is scanned.
    special_markers: tuple[str, ...] = field(kw_only=True)

    @property
    def prefix(self) -> str:
        """What an answer begins with when it has to call."""
        return "" if self.is_begin_optional else self.begin


HERMES = ToolFormat(
    "hermes",
    # Others put tags between these markers.
    (r"<tool_call>", r"</tool_call>", r'\\?"arguments\\?": '),
    begin="<tool_call>",
    end="</tool_call>",
    special_markers=("<tool_call>", "</tool_call>"),
)
MISTRAL = ToolFormat(
    "mistral",
    # From v11 on a call is `name[ARGS]{…}`.
    (r"\[TOOL_CALLS\]", r"\A(?s:(?!.*\[ARGS\]))"),
    begin="[TOOL_CALLS]",
    opening="[",
    separator=",",
    end="]",
    special_markers=("[TOOL_CALLS]",),
)
LLAMA = ToolFormat(
    "llama",
    # Llama 4 names its headers otherwise, and has other markers.
    (r"<\|start_header_id\|>", r'\\?"parameters\\?": ', r"Environment: ipython|<\|python_tag\|>"),
    begin="<|python_tag|>",
    is_begin_optional=True,
    separator=";",
    arguments_key="parameters",
    special_markers=("<|python_tag|>",),
)
FORMATS = (HERMES, MISTRAL, LLAMA)


def find_format(template: str | None) -> ToolFormat | None:
    """The format in which a model with this chat template (in Jinja) calls tools.

    None: the template knows no tools, or has calls in a format that is not known here.
    """
    if template is None or re.search(r"\btools\b", template) is None:
        return None
    return next((format for format in FORMATS if all(re.search(sign, template) for sign in format.signs)), None)


@dataclass(frozen=True, slots=True)
class Said:
    """The next piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The answer's `call`-th call, from 0, begins."""

    call: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of the JSON text of a call's arguments, as the model wrote it."""

    call: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call's arguments are told. A call that is cut off by the answer's end does not end."""

    call: int


Event = Said | CallBegun | CallArguments | CallEnded


class _Broken(Exception):
    """What was read is no call."""


class ToolScanner:
    """Finds the calls in an answer's text, however it is cut into pieces.

    Nothing is lost: what turns out to be no call (broken JSON, another name than those known, cut off before its name)
    is told as text, with its marker. Dropped are only the markers of calls, and the whitespace before and after them.
    Text after a call is told as text, with the whitespace before it.

    Arguments are told as they come, so that what breaks in the middle of them stays a call: it ends there, and the
    rest is text. Their brackets and strings are followed; what is between these is not checked.
    """

    def __init__(self, format: ToolFormat, names: Collection[str], *, in_call: bool = False) -> None:
        """`names`: of the functions that can be called. `in_call`: the text begins after `format.begin`."""
        self._format = format
        self._names = frozenset(names)
        self._num_calls = 0
        # Of the call that is being read. Arguments may come before the name.
        self._name: str | None = None
        self._early_arguments = ""
        self._is_begun = False
        # Of the block.
        self._is_in_block = False
        self._is_bare = False
        self._unparsed = ""
        self._num_marker_chars = 0
        # Of the text. Held is what was read and not told: text, if nothing comes of it.
        self._is_at_start = True
        self._is_after_call = False
        self._held = ""
        self._unread: deque[str] = deque()
        self._events: list[Event] = []
        self._run: list[str] = []
        self._reading = self._read_answer(in_call=in_call)
        next(self._reading)

    @property
    def is_in_call(self) -> bool:
        """Whether what comes next belongs to calls: after a marker, or in an object that names a function."""
        return self._is_in_block and (not self._is_bare or self._name is not None or self._num_calls > 0)

    @property
    def unparsed(self) -> str:
        """The text of the block of calls that has begun and not ended: what came after its begin marker."""
        return self._unparsed if self._is_in_block else ""

    def add(self, text: str) -> list[Event]:
        """What can be told now."""
        for char in text:
            self._reading.send(char)
        return self._take_events()

    def finish(self) -> list[Event]:
        """What was held back, now that the answer has ended."""
        is_after_call = self._is_after_call and (self._is_in_block or not self._held.strip())
        if self._name is not None and not self._is_begun:
            self._begin_call()
        elif not self._is_begun and not is_after_call:
            self._run.append(self._held)
        return self._take_events()

    # Each of these reads a part of the answer. Those that are given a character go on from it: it is read already.

    def _read(self) -> _Reading[str]:
        char = self._unread.popleft() if self._unread else (yield)
        self._held += char
        if self._is_in_block:
            self._unparsed += char
        return char

    def _read_past_whitespace(self) -> _Reading[str]:
        char = yield from self._read()
        while char in _WHITESPACE:
            char = yield from self._read()
        return char

    def _read_answer(self, *, in_call: bool) -> _Reading[None]:
        while True:
            if not in_call:
                yield from self._read_text()
            in_call = False
            self._is_in_block, self._is_at_start = True, False
            self._num_marker_chars = len(self._held)
            self._unparsed = ""
            try:
                yield from self._read_block()
                self._held = ""
            except _Broken:
                self._give_back()
            self._is_in_block = self._is_bare = False

    def _read_text(self) -> _Reading[None]:
        """Up to where a block begins."""
        begin = self._format.begin
        while True:
            yield from self._read()
            if self._held.endswith(begin):
                return
            if self._format.is_begin_optional and self._is_at_start and self._held.lstrip() == "{":
                self._is_bare = True
                self._put_back("{")
                return
            num_begun = max(length for length in range(len(begin)) if self._held.endswith(begin[:length]))
            text = self._held[: len(self._held) - num_begun].rstrip()
            if text:
                self._is_at_start = self._is_after_call = False
                self._run.append(text)
                self._held = self._held[len(text) :]

    def _read_block(self) -> _Reading[None]:
        if self._format.opening:
            yield from self._read_one_of(self._format.opening)
        separator, end = self._format.separator, self._format.end
        while True:
            yield from self._read_call()
            if (yield from self._read_one_of(separator, end)) == end:
                return

    def _read_one_of(self, *markers: str) -> _Reading[str]:
        seen = yield from self._read_past_whitespace()
        while seen not in markers:
            if not any(marker.startswith(seen) for marker in markers):
                raise _Broken
            seen += yield from self._read()
        return seen

    def _read_call(self) -> _Reading[None]:
        try:
            yield from self._read_call_object()
        except _Broken:
            if not self._is_begun:
                raise
            self._put_back(self._held)
        else:
            if not self._is_begun:
                self._early_arguments = self._early_arguments or "{}"
                self._begin_call()
        self._end_call()

    def _read_call_object(self) -> _Reading[None]:
        if (yield from self._read_past_whitespace()) != "{":
            raise _Broken
        self._is_after_call = False
        char = yield from self._read_past_whitespace()
        while char != "}":
            key = yield from self._read_key(char)
            if (yield from self._read_past_whitespace()) != ":":
                raise _Broken
            char = yield from self._read_member(key, (yield from self._read_past_whitespace()))
            if char == ",":
                char = yield from self._read_past_whitespace()
            elif char != "}":
                raise _Broken
        if self._name is None:
            raise _Broken

    def _read_member(self, key: str, char: str) -> _Reading[str]:
        """The value of a key of a call. Ends with the first character after it and after whitespace."""
        if key == "name" and self._name is None:
            name = yield from self._read_key(char)
            if name not in self._names:
                raise _Broken
            self._name = name
        elif key in _ARGUMENTS_KEYS and not self._is_begun and not self._early_arguments:
            if char != "{":
                raise _Broken
            if self._name is not None:
                self._begin_call()
            yield from self._read_brackets(char, self._tell_argument)
        elif char == '"':
            yield from self._read_string(_tell_nothing)
        elif char in _CLOSING:
            yield from self._read_brackets(char, _tell_nothing)
        else:
            while char.isalnum() or char in "+-.":
                char = yield from self._read()
            if char not in _WHITESPACE:
                return char
        return (yield from self._read_past_whitespace())

    def _read_key(self, char: str) -> _Reading[str]:
        if char != '"':
            raise _Broken
        text = yield from self._read_string(_tell_nothing)
        try:
            return json.loads(text)
        except ValueError as error:
            raise _Broken from error

    def _read_string(self, tell: Callable[[str], None]) -> _Reading[str]:
        text, is_escaped = '"', False
        tell(text)
        while True:
            char = yield from self._read()
            tell(char)
            text += char
            if char == '"' and not is_escaped:
                return text
            is_escaped = char == "\\" and not is_escaped

    def _read_brackets(self, char: str, tell: Callable[[str], None]) -> _Reading[None]:
        tell(char)
        closing = [_CLOSING[char]]
        while closing:
            char = yield from self._read()
            if char == '"':
                yield from self._read_string(tell)
                continue
            if char in _CLOSING:
                closing.append(_CLOSING[char])
            elif char == closing[-1]:
                closing.pop()
            elif not char.isalnum() and char not in _BETWEEN:
                raise _Broken
            tell(char)

    def _begin_call(self) -> None:
        assert self._name is not None
        self._flush_run()
        self._events.append(CallBegun(self._num_calls, self._name))
        self._is_begun = True
        self._run.append(self._early_arguments)
        self._held = ""
        self._num_marker_chars = 0

    def _tell_argument(self, char: str) -> None:
        if self._is_begun:
            self._run.append(char)
            self._held = ""
        else:
            self._early_arguments += char

    def _end_call(self) -> None:
        self._flush_run()
        self._events.append(CallEnded(self._num_calls))
        self._num_calls += 1
        self._name, self._early_arguments, self._is_begun = None, "", False
        self._is_after_call = True
        self._held = ""

    def _give_back(self) -> None:
        """Nothing that is held is a call: its marker is text, and what followed is read again as text."""
        self._name, self._early_arguments = None, ""
        self._put_back(self._held[self._num_marker_chars :])
        self._run.append(self._held)
        self._held = ""

    def _put_back(self, text: str) -> None:
        """Read these last characters again."""
        self._unread.extendleft(reversed(text))
        self._held = self._held.removesuffix(text)
        self._unparsed = self._unparsed.removesuffix(text)

    def _flush_run(self) -> None:
        # Between text and arguments a call begins or ends.
        text = "".join(self._run)
        self._run.clear()
        if text:
            self._events.append(CallArguments(self._num_calls, text) if self._is_begun else Said(text))

    def _take_events(self) -> list[Event]:
        self._flush_run()
        events, self._events = self._events, []
        return events


def _tell_nothing(char: str) -> None:
    """For what a caller never sees."""
