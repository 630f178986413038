"""Completions, the older way (contract: `/completions`): a text goes on, without a chat template."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from caesura.schema.common import LIST, TOKEN_LISTS, TOKENS, Answer, AnyText, Text, TextOrTokens, TokenList
from caesura.schema.sampling import Refused, Sampling, Usage

MAX_PROMPTS = 2048

Prompt = Annotated[
    AnyText
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS), Tag(LIST)]
    | Annotated[TokenList, Tag(TOKENS)]
    | Annotated[list[TokenList], Field(max_length=MAX_PROMPTS), Tag(TOKEN_LISTS)],
    TextOrTokens,
]


class CreateCompletion(Sampling):
    """Left out, `prompt` is the empty text, and `max_tokens` 16."""

    prompt: Prompt | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    suffix: Refused = None


class TextLogprobs(Answer):
    """The lists have an item for each token."""

    tokens: list[str]
    #: None only for the first token of an echoed prompt, here and in `top_logprobs`.
    token_logprobs: list[float | None]
    #: The likeliest, and the token itself.
    top_logprobs: list[dict[str, float] | None]
    #: Where the token begins in the choice's text, in characters.
    text_offset: list[int]


class TextChoice(Answer):
    text: str
    index: int
    logprobs: TextLogprobs | None
    #: None in every chunk of a stream but the choice's last.
    finish_reason: Literal["stop", "length"] | None


class TextCompletion(Answer):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    #: In a stream with `include_usage` null in every chunk but the last; in one without, left out.
    usage: Usage | None
    system_fingerprint: str
