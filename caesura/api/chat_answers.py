"""The engine's answers in the form of Chat Completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from caesura.api.asked import SYSTEM_FINGERPRINT, AnswerMade, CallMade, usage_of
from caesura.api.sse import DONE, event
from caesura.ids import new_id
from caesura.inference.engine import Finished, Piece, Text, TokenLogprob, ToolArguments, ToolCall
from caesura.schema.chat import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    FinishReason,
    FunctionCalled,
    FunctionDelta,
    LikelyToken,
    Logprobs,
    TokenLogprobs,
    ToolCallDelta,
    ToolCalled,
)
from caesura.schema.sampling import Usage


@dataclass(frozen=True, slots=True)
class Telling:
    """How one request's answers are told."""

    id: str
    created: int
    model: str
    has_logprobs: bool
    #: Calls have the older form: one function's, without an id.
    has_functions: bool
    #: At the end of a stream.
    include_usage: bool


def whole_answer(telling: Telling, answers: Sequence[AnswerMade]) -> ChatCompletion:
    return ChatCompletion(
        id=telling.id,
        created=telling.created,
        model=telling.model,
        choices=[_choice(telling, index, answer) for index, answer in enumerate(answers)],
        usage=usage_of([[answer.end for answer in answers]]),
        system_fingerprint=SYSTEM_FINGERPRINT,
    )


def _choice(telling: Telling, index: int, answer: AnswerMade) -> Choice:
    calls = [_called(call) for call in answer.calls]
    message = AnswerMessage(
        content=None if calls and not answer.text else answer.text,
        tool_calls=[ToolCalled(id=new_id("call_"), function=call) for call in calls]
        if calls and not telling.has_functions
        else None,
        function_call=calls[0] if calls and telling.has_functions else None,
    )
    return Choice(
        index=index,
        message=message,
        logprobs=_logprobs(answer.logprobs) if telling.has_logprobs else None,
        finish_reason=_finish_reason(telling, answer.end),
    )


def _called(call: CallMade) -> FunctionCalled:
    return FunctionCalled(name=call.name, arguments=call.arguments)


def _finish_reason(telling: Telling, end: Finished) -> FinishReason:
    return "function_call" if end.finish_reason == "tool_calls" and telling.has_functions else end.finish_reason


def _logprobs(tokens: Sequence[TokenLogprob]) -> Logprobs:
    return Logprobs(content=to_token_logprobs(tokens), refusal=None)


def to_token_logprobs(tokens: Sequence[TokenLogprob]) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(**_token(token), top_logprobs=[LikelyToken(**_token(likely)) for likely in token.top])
        for token in tokens
    ]


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.bytes)}


async def write_chunks(telling: Telling, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[str, None]:
    """Server-sent events: of each choice the role, the pieces and the finish; the usage if asked for; `[DONE]`."""
    begun: set[int] = set()
    ends: list[Finished] = []
    async for piece in pieces:
        if piece.index not in begun:
            begun.add(piece.index)
            yield _chunk(telling, _chunk_choice(piece.index, role="assistant", content="", refusal=None))
        yield _chunk(telling, _next_choice(telling, piece))
        if isinstance(piece, Finished):
            ends.append(piece)
    if telling.include_usage:
        yield _chunk(telling, usage=usage_of([ends]))
    yield DONE


def _chunk(telling: Telling, *choices: ChunkChoice, usage: Usage | None = None) -> str:
    chunk = ChatCompletionChunk(
        id=telling.id,
        object="chat.completion.chunk",
        created=telling.created,
        model=telling.model,
        service_tier="default",
        system_fingerprint=SYSTEM_FINGERPRINT,
        choices=list(choices),
    )
    body = chunk.model_dump(exclude_unset=True)
    if telling.include_usage:
        body["usage"] = None if usage is None else usage.model_dump()
    return event(body)


def _chunk_choice(index: int, **delta: Any) -> ChunkChoice:
    return ChunkChoice(index=index, delta=Delta(**delta), finish_reason=None)


def _next_choice(telling: Telling, piece: Piece) -> ChunkChoice:
    match piece:
        case Text():
            choice = _chunk_choice(piece.index, content=piece.text)
            return choice.model_copy(update={"logprobs": _logprobs(piece.logprobs)}) if telling.has_logprobs else choice
        case ToolCall():
            function = FunctionDelta(name=piece.name, arguments="")
            if telling.has_functions:
                return _chunk_choice(piece.index, function_call=function)
            call = ToolCallDelta(index=piece.call, id=new_id("call_"), type="function", function=function)
            return _chunk_choice(piece.index, tool_calls=[call])
        case ToolArguments():
            function = FunctionDelta(arguments=piece.text)
            if telling.has_functions:
                return _chunk_choice(piece.index, function_call=function)
            return _chunk_choice(piece.index, tool_calls=[ToolCallDelta(index=piece.call, function=function)])
        case Finished():
            return ChunkChoice(index=piece.index, delta=Delta(), finish_reason=_finish_reason(telling, piece))
