"""A response in the making: what the engine's pieces add to it, and the events that tell of it. Does no I/O."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from caesura.api.chat_answers import to_token_logprobs
from caesura.api.errors import error_body
from caesura.errors import CaesuraError
from caesura.ids import new_id
from caesura.inference.engine import Finished, Piece, Text, ToolArguments, ToolCall
from caesura.schema.chat import TokenLogprobs
from caesura.schema.responses import (
    ErrorOfResponse,
    FunctionCall,
    IncompleteDetails,
    OutputMessage,
    OutputText,
    Response,
    Status,
    Usage,
)

Event = dict[str, Any]


@dataclass(slots=True)
class _Message:
    id: str = field(default_factory=lambda: new_id("msg_"))
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])

    def part(self) -> OutputText:
        return OutputText(text=self.text, logprobs=self.logprobs)

    def to_wire(self, status: Status) -> OutputMessage:
        return OutputMessage(id=self.id, status=status, content=[] if status == "in_progress" else [self.part()])


@dataclass(slots=True)
class _Call:
    name: str
    id: str = field(default_factory=lambda: new_id("fc_"))
    call_id: str = field(default_factory=lambda: new_id("call_"))
    arguments: str = ""

    def to_wire(self, status: Status) -> FunctionCall:
        return FunctionCall(id=self.id, status=status, call_id=self.call_id, name=self.name, arguments=self.arguments)


class ResponseMaking:
    """An item of the output begins when the one before it has ended."""

    def __init__(self, response: Response) -> None:
        self.response = response
        self._open: _Message | _Call | None = None
        self._num_events = 0

    def begin(self) -> list[Event]:
        return [self._tell("response.created"), self._tell("response.in_progress")]

    def add(self, piece: Piece) -> list[Event]:
        """`Finished` makes the response whole, for which there is no event yet: see `end`."""
        match piece:
            case Text():
                return self._add_text(piece.text, to_token_logprobs(piece.logprobs))
            case ToolCall():
                return [*self._close("completed"), *self._open_item(_Call(piece.name))]
            case ToolArguments():
                return self._add_arguments(piece.text)
            case Finished():
                return self._finish(piece)

    def end(self) -> list[Event]:
        return [self._tell(f"response.{self.response.status}")]

    def fail(self, fault: CaesuraError) -> list[Event]:
        """End it where it is."""
        events = self._close("incomplete")
        error = ErrorOfResponse(
            code="server_error" if fault.status >= 500 else "invalid_prompt",
            message=error_body(fault)["error"]["message"],
        )
        self._update(status="failed", error=error, incomplete_details=None, completed_at=None)
        return [*events, self._tell("response.failed")]

    def _add_text(self, text: str, logprobs: list[TokenLogprobs]) -> list[Event]:
        if not text and not logprobs:
            return []
        message, events = self._open, list[Event]()
        if not isinstance(message, _Message):
            message = _Message()
            events = [*self._close("completed"), *self._open_item(message)]
        message.text += text
        message.logprobs += logprobs
        told = [token.model_dump() for token in logprobs]
        return [*events, self._tell_part("response.output_text.delta", message, delta=text, logprobs=told)]

    def _add_arguments(self, text: str) -> list[Event]:
        call = self._open
        assert isinstance(call, _Call), "the engine's contract is to begin a call before its arguments"
        call.arguments += text
        return [self._tell_item("response.function_call_arguments.delta", call, delta=text)]

    def _finish(self, finished: Finished) -> list[Event]:
        is_cut = finished.finish_reason == "length"
        events: list[Event] = []
        if self._open is None:
            events = self._open_item(_Message())  # clients look into the first item of the output
        events += self._close("incomplete" if is_cut else "completed")
        usage = Usage(
            input_tokens=finished.prompt_tokens,
            output_tokens=finished.completion_tokens,
            total_tokens=finished.prompt_tokens + finished.completion_tokens,
        )
        if is_cut:
            self._update(status="incomplete", incomplete_details=IncompleteDetails(), usage=usage)
        else:
            self._update(status="completed", completed_at=int(time.time()), usage=usage)
        return events

    def _open_item(self, item: _Message | _Call) -> list[Event]:
        self._open = item
        begun = item.to_wire("in_progress").model_dump()
        events = [self._tell("response.output_item.added", output_index=self._index, item=begun)]
        if isinstance(item, _Message):
            events.append(self._tell_part("response.content_part.added", item, part=item.part().model_dump()))
        return events

    def _close(self, status: Status) -> list[Event]:
        """End the item that is open, if one is."""
        item, self._open = self._open, None
        if item is None:
            return []
        whole = item.to_wire(status)
        if isinstance(item, _Message):
            part = item.part().model_dump()
            events = [
                self._tell_part("response.output_text.done", item, text=item.text, logprobs=part["logprobs"]),
                self._tell_part("response.content_part.done", item, part=part),
            ]
        else:
            done = {"name": item.name, "arguments": item.arguments}
            events = [self._tell_item("response.function_call_arguments.done", item, **done)]
        events.append(self._tell("response.output_item.done", output_index=self._index, item=whole.model_dump()))
        self._update(output=[*self.response.output, whole])
        return events

    @property
    def _index(self) -> int:
        """Of the item that is open: those before it have ended."""
        return len(self.response.output)

    def _update(self, **values: Any) -> None:
        self.response = self.response.model_copy(update=values)

    def _tell_part(self, type: str, item: _Message, **values: Any) -> Event:
        """A message has one part."""
        return self._tell_item(type, item, content_index=0, **values)

    def _tell_item(self, type: str, item: _Message | _Call, **values: Any) -> Event:
        return self._tell(type, item_id=item.id, output_index=self._index, **values)

    def _tell(self, type: str, **values: Any) -> Event:
        """An event; one that says nothing else shows the response."""
        number, self._num_events = self._num_events, self._num_events + 1
        return {"type": type, "sequence_number": number, **(values or {"response": self.response.model_dump()})}
