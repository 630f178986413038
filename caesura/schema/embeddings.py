"""Embeddings (contract: `/embeddings`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, Tag

from caesura.schema.common import LIST, TEXT, TOKEN_LISTS, TOKENS, Answer, Request, Text, TextOrTokens, TokenList

MAX_INPUTS = 2048

NonEmptyText = Annotated[Text, StringConstraints(min_length=1)]
Input = Annotated[
    Annotated[NonEmptyText, Tag(TEXT)]
    | Annotated[list[NonEmptyText], Field(min_length=1, max_length=MAX_INPUTS), Tag(LIST)]
    | Annotated[TokenList, Tag(TOKENS)]
    | Annotated[list[TokenList], Field(max_length=MAX_INPUTS), Tag(TOKEN_LISTS)],
    TextOrTokens,
]


class CreateEmbeddings(Request):
    model: Text
    input: Input
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


class Embedding(Answer):
    object: Literal["embedding"] = "embedding"
    index: int
    #: As text: the base64 of the numbers as float32, the lowest byte first.
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Answer):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
