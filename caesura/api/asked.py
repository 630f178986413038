"""What every endpoint that asks the engine needs: the model that answers, the sampling, and the answers as a whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from caesura import __version__
from caesura.api.explain import quote
from caesura.api.state import Server
from caesura.errors import CaesuraError, InvalidRequest, NotFound
from caesura.inference.engine import Finished, Piece, Text, TokenLogprob, ToolArguments, ToolCall
from caesura.jobs import Artifact, Model
from caesura.schema.responses import CreateResponse
from caesura.schema.sampling import Sampling, Usage

#: What may change the answer to the same request with the same seed.
SYSTEM_FINGERPRINT = f"fp_{__version__}"


@dataclass(frozen=True, slots=True)
class Answering:
    """The model that answers."""

    name: str
    base: str
    #: None: the base model alone.
    adapter: Artifact | None


def find_answering(server: Server, name: str) -> Answering:
    """The model that `name` means. Asks the database: not for the event loop.

    Raises NotFound, model_not_found, where none answers to that name.
    """
    model = server.resolve_model(name)
    if model is None:
        raise no_such_model(name)
    if not isinstance(model, Model):
        return Answering(model, model, None)
    if model.base not in server.settings.bases():
        raise NotFound(
            f"The model `{model.name}` was tuned from '{model.base}', which is no longer among this server's base "
            "models. Put it back under [models] in caesura.toml.",
            code="model_not_found",
        )
    return Answering(model.name, model.base, model.adapter)


def no_such_model(name: str) -> NotFound:
    return NotFound(
        f"The model `{quote(name)}` does not exist or you do not have access to it.", code="model_not_found"
    )


def sampling_of(body: Sampling) -> dict[str, Any]:
    """What of `body` chats and completions have in common, as the keywords of the engine's requests."""
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return {
        "n": 1 if body.n is None else body.n,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "presence_penalty": body.presence_penalty or 0.0,
        "logit_bias": {int(token): bias for token, bias in (body.logit_bias or {}).items()},
        "seed": body.seed,
        "stop": tuple(text for text in stop if text),
    }


def check_stream_options(body: Sampling | CreateResponse) -> None:
    """Raises InvalidRequest where there are options for a stream that is not asked for."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )


async def until_finished(pieces: AsyncGenerator[Piece, None], num_answers: int) -> AsyncGenerator[Piece, None]:
    """`pieces`, held to the engine's contract: every answer ends with Finished. Raises CaesuraError where not."""
    unfinished = set(range(num_answers))
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Finished):
                unfinished.discard(piece.index)
            yield piece
    if unfinished:
        raise CaesuraError


@dataclass(slots=True)
class CallMade:
    """A call of a function, as far as it is made."""

    name: str
    #: JSON text.
    arguments: str = ""


@dataclass(slots=True)
class AnswerMade:
    """An answer, as far as it is made."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    calls: list[CallMade] = field(default_factory=list[CallMade])
    #: None: it goes on.
    finished: Finished | None = None

    def add(self, piece: Piece) -> None:
        match piece:
            case Text():
                self.text += piece.text
                self.logprobs += piece.logprobs
            case ToolCall():
                self.calls.append(CallMade(piece.name))
            case ToolArguments():
                self.calls[piece.call].arguments += piece.text
            case Finished():
                self.finished = piece

    @property
    def end(self) -> Finished:
        """Of an answer that is whole."""
        assert self.finished is not None
        return self.finished


async def collect(pieces: AsyncGenerator[Piece, None], num_answers: int) -> list[AnswerMade]:
    """The whole answers, by their index. Raises CaesuraError where the engine leaves one of them unfinished."""
    answers = [AnswerMade() for _ in range(num_answers)]
    async with aclosing(until_finished(pieces, num_answers)) as pieces:
        async for piece in pieces:
            answers[piece.index].add(piece)
    return answers


def usage_of(ends_by_prompt: Sequence[Sequence[Finished]]) -> Usage:
    """The tokens of each prompt once, and those of all its answers."""
    prompt_tokens = sum(ends[0].prompt_tokens for ends in ends_by_prompt)
    completion_tokens = sum(end.completion_tokens for ends in ends_by_prompt for end in ends)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )


def json_answer(value: BaseModel) -> Response:
    return Response(value.model_dump_json(), media_type="application/json")
