"""One answer in the making: tokens come in as they are drawn, pieces go out as they can be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from caesura.inference.draw import Draw, Drawn, Mask
from caesura.inference.engine import Finished, Piece, Text, TokenLogprob, ToolArguments, ToolCall
from caesura.inference.grammar import Constraint, build_call_constraint, build_constraint, spell
from caesura.inference.prompt import Prompt
from caesura.inference.text import Decode, Detokenizer, StopStrings
from caesura.inference.tools import CallArguments, CallBegun, CallEnded, Event, Said, ToolFormat, ToolScanner
from caesura.models.decoding import Decoder
from caesura.models.loading import Base


@dataclass(frozen=True, slots=True)
class Functions:
    """What an answer may call."""

    format: ToolFormat
    #: As in a request: `{"name", "parameters", "strict"}`.
    functions: list[dict[str, Any]]
    parallel: bool
    #: The answer has to be a call: its prompt ends with the format's prefix.
    is_required: bool
    #: The token that begins calls, where it is one.
    begin_id: int | None

    @property
    def can_follow(self) -> bool:
        """Whether a block of calls can come after another."""
        return bool(self.format.end) and not self.format.separator


@dataclass(frozen=True, slots=True)
class Script:
    """What all answers to a request have in common."""

    base: Base
    decoder: Decoder
    prompt: Prompt
    #: Tokens that an answer may have.
    max_tokens: int
    decode: Decode
    stop: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None
    functions: Functions | None = None
    #: What comes before every answer.
    echo: tuple[Text, ...] = ()


class Answer:
    """`is_finished` once its `Finished` was told."""

    def __init__(self, script: Script, index: int, draw: Draw) -> None:
        """Raises InvalidRequest when the answer could not be held to its schema or its functions."""
        self.script = script
        self.prompt = script.prompt
        self.token_ids: list[int] = []
        self.draw = draw
        self.is_finished = False
        self._index = index
        self._detokenizer = Detokenizer(script.decode)
        self._stops = StopStrings(script.stop)
        self._logprobs: list[TokenLogprob] = []
        self._scanner = None if script.functions is None else _scanner(script.functions)
        self._num_calls = 0
        #: What the whole answer is held to, and what the call in hand is.
        self._schema = None if script.json_schema is None else build_constraint(script.base, script.json_schema)
        self._call: Constraint | None = None
        if script.functions is not None and script.functions.is_required:
            self._schema, self._call = None, self._call_constraint(script.functions)
        self._hold()

    def begin(self) -> list[Piece]:
        """What is told before the first token."""
        told: list[Piece] = [Text(text.text, self._index, text.logprobs) for text in self.script.echo]
        if not self.script.max_tokens:
            told.append(self._finish("length"))
        return told

    def add(self, drawn: Drawn) -> list[Piece]:
        """What can be told now that this token has been drawn. Raises InvalidRequest when the grammar breaks down."""
        if self.draw.fault is not None:
            raise self.draw.fault
        self.token_ids.append(drawn.token_id)
        self._accept(drawn.token_id)
        if drawn.token_id in self.script.base.eos_token_ids:
            return self._end("stop")
        if drawn.logprob is not None:
            self._logprobs.append(spell_drawn(self.script.base, drawn))
        told = self._tell(self._stops.add(self._detokenizer.add(drawn.token_id)))
        if self._stops.found:
            self._logprobs.clear()
            return [*told, *self._rest(), self._finish("stop")]
        if self._is_whole():
            return [*told, *self._end("stop")]
        if len(self.token_ids) == self.script.max_tokens:
            return [*told, *self._end("length")]
        return told

    def _accept(self, token_id: int) -> None:
        functions = self.script.functions
        if len(self.token_ids) == 1 and self._schema is not None and functions is not None:
            if token_id == functions.begin_id:
                self._schema = None  # a call takes the place of the text
            self._hold()
        constraint = self._call or self._schema
        if constraint is not None:
            constraint.accept(token_id)

    def _is_whole(self) -> bool:
        """Whether nothing can follow: the JSON is closed, or the calls are made."""
        if self._call is not None:
            if not self._call.is_complete:
                return False
            self._call = None
            self._hold()
        elif self._schema is not None:
            return self._schema.is_complete
        functions, scanner = self.script.functions, self._scanner
        if functions is None or scanner is None or not self._num_calls or scanner.is_in_call:
            return False
        return not functions.parallel or not functions.can_follow

    def _end(self, reason: str) -> list[Piece]:
        told = self._tell(self._stops.add(self._detokenizer.rest()) + self._stops.rest())
        return [*told, *self._rest(), self._finish(reason)]

    def _rest(self) -> list[Piece]:
        """What the scanner held back, and log-probabilities of tokens without text."""
        events = [] if self._scanner is None else self._scanner.finish()
        told = self._pieces(events)
        if self._logprobs and not self._num_calls:
            told.append(self._text(""))
        return told

    def _tell(self, text: str) -> list[Piece]:
        if not text:
            return []
        if self._scanner is None:
            return [self._text(text)]
        was_in_call = self._scanner.is_in_call
        told = self._pieces(self._scanner.add(text))
        if self._scanner.is_in_call and not was_in_call and self._call is None:
            self._begin_call()
        return told

    def _pieces(self, events: Sequence[Event]) -> list[Piece]:
        told: list[Piece] = []
        for event in events:
            match event:
                case Said(text):
                    told.append(self._text(text))
                case CallBegun(call, name):
                    self._num_calls += 1
                    self._logprobs.clear()
                    told.append(ToolCall(call, name, self._index))
                case CallArguments(call, text):
                    told.append(ToolArguments(call, text, self._index))
                case CallEnded():
                    pass
        return told

    def _text(self, text: str) -> Text:
        logprobs, self._logprobs = tuple(self._logprobs), []
        return Text(text, self._index, logprobs)

    def _finish(self, reason: str) -> Finished:
        self.is_finished = True
        reason = "tool_calls" if self._num_calls and reason == "stop" else reason
        return Finished(reason, len(self.prompt.token_ids), len(self.token_ids), self._index)  # pyright: ignore

    def _begin_call(self) -> None:
        """The model has begun to call by itself: from here on it is held to the functions, if it can be."""
        assert self.script.functions is not None
        assert self._scanner is not None
        constraint = self._call_constraint(self.script.functions)
        is_all_scanned = not self._detokenizer.rest() and not self._stops.rest()
        if is_all_scanned and constraint.accept_text(self._scanner.unparsed):
            self._call = constraint
            self._hold()

    def _call_constraint(self, functions: Functions) -> Constraint:
        return build_call_constraint(
            self.script.base, functions.format, functions.functions, parallel=functions.parallel
        )

    def _hold(self) -> None:
        """Hold the next token to what it has to be."""
        mask: Mask | None = self._call or self._schema
        functions = self.script.functions
        if not self.token_ids and self._schema is not None and functions is not None:
            mask = _SchemaOrCall(self._schema, functions.begin_id)
        self.draw.mask = mask


@dataclass(frozen=True, slots=True)
class _SchemaOrCall:
    """The first token of an answer that may be JSON of a schema, or a call."""

    schema: Constraint
    begin_id: int | None

    def mask(self, logits_V: Tensor) -> Tensor:
        masked_V = self.schema.mask(logits_V)
        if self.begin_id is not None:
            masked_V[self.begin_id] = logits_V[self.begin_id]
        return masked_V


def _scanner(functions: Functions) -> ToolScanner:
    names = [function["name"] for function in functions.functions]
    return ToolScanner(functions.format, names, in_call=functions.is_required)


def spell_drawn(base: Base, drawn: Drawn) -> TokenLogprob:
    """The token in words, and those beside it."""
    top = tuple(_spell(base, token_id, logprob) for token_id, logprob in drawn.top)
    return _spell(base, drawn.token_id, drawn.logprob, top)


def _spell(base: Base, token_id: int, logprob: float | None, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    spelled = spell(base, token_id)
    return TokenLogprob(spelled.decode("utf-8", "replace"), logprob, tuple(spelled), top)
