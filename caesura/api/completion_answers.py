"""The engine's continuations in the form of Completions, whole and in chunks."""

from __future__ import annotations

import codecs
import math
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from caesura.api.asked import SYSTEM_FINGERPRINT, AnswerMade, usage_of
from caesura.api.sse import DONE, event
from caesura.inference.engine import Finished, Piece, Text, TokenLogprob
from caesura.schema.completions import TextChoice, TextCompletion, TextLogprobs
from caesura.schema.sampling import Usage


@dataclass(frozen=True, slots=True)
class Telling:
    """How one request's answers are told."""

    id: str
    created: int
    model: str
    #: Of a prompt: how many answers are told, and how many are made, of which those are the best.
    n: int
    num_made: int
    has_echo: bool
    has_logprobs: bool
    #: At the end of a stream.
    include_usage: bool


def whole_answer(telling: Telling, answers: Sequence[AnswerMade]) -> TextCompletion:
    """`answers` are those to one prompt after the other."""
    made = telling.num_made
    by_prompt = [answers[start : start + made] for start in range(0, len(answers), made)]
    told = [answer for group in by_prompt for answer in _best(telling, group)]
    choices = [
        TextChoice(
            text=answer.text,
            index=index,
            logprobs=_Offsets().tell(answer.logprobs) if telling.has_logprobs else None,
            finish_reason=_finish_reason(answer.end),
        )
        for index, answer in enumerate(told)
    ]
    return _completion(telling, choices, usage_of([[answer.end for answer in group] for group in by_prompt]))


def _best(telling: Telling, answers: Sequence[AnswerMade]) -> Sequence[AnswerMade]:
    if len(answers) == telling.n:
        return answers
    return sorted(answers, key=lambda answer: _mean_logprob(telling, answer), reverse=True)[: telling.n]


def _mean_logprob(telling: Telling, answer: AnswerMade) -> float:
    """Of the tokens that were sampled: those of an echoed prompt are the same in every answer. Without any: -inf."""
    sampled = answer.logprobs[answer.end.prompt_tokens if telling.has_echo else 0 :]
    logprobs = [token.logprob for token in sampled if token.logprob is not None]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


def _finish_reason(end: Finished) -> Literal["stop", "length"]:
    return "length" if end.finish_reason == "length" else "stop"


async def write_chunks(telling: Telling, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[str, None]:
    """Server-sent events: of each choice the pieces and the finish; the usage if asked for; `[DONE]`."""
    offsets: defaultdict[int, _Offsets] = defaultdict(_Offsets)
    ends: defaultdict[int, list[Finished]] = defaultdict(list)
    async for piece in pieces:
        text, logprobs, finish_reason = "", None, None
        if isinstance(piece, Text):
            text = piece.text
            logprobs = offsets[piece.index].tell(piece.logprobs) if telling.has_logprobs else None
        elif isinstance(piece, Finished):
            ends[piece.index // telling.n].append(piece)
            finish_reason = _finish_reason(piece)
        choice = TextChoice(text=text, index=piece.index, logprobs=logprobs, finish_reason=finish_reason)
        yield _chunk(telling, [choice])
    if telling.include_usage:
        yield _chunk(telling, [], usage_of(list(ends.values())))
    yield DONE


def _chunk(telling: Telling, choices: list[TextChoice], usage: Usage | None = None) -> str:
    body = _completion(telling, choices, usage).model_dump()
    if not telling.include_usage:
        del body["usage"]
    return event(body)


def _completion(telling: Telling, choices: list[TextChoice], usage: Usage | None) -> TextCompletion:
    return TextCompletion(
        id=telling.id,
        created=telling.created,
        model=telling.model,
        choices=choices,
        usage=usage,
        system_fingerprint=SYSTEM_FINGERPRINT,
    )


class _Offsets:
    """Tells one choice's tokens, and where each begins in its text: a token may hold but a part of a character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def tell(self, tokens: Iterable[TokenLogprob]) -> TextLogprobs:
        told = TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for token in tokens:
            told.tokens.append(token.token)
            told.token_logprobs.append(token.logprob)
            told.top_logprobs.append(_likely(token))
            told.text_offset.append(self._offset)
            self._offset += len(self._decoder.decode(bytes(token.bytes)))
        return told


def _likely(token: TokenLogprob) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    likely: dict[str, float] = {}
    for one in (*token.top, token):
        if one.logprob is not None:
            likely.setdefault(one.token, one.logprob)  # of two tokens that read alike, the likelier
    return likely
