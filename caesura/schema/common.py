"""What several resources share."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

Item = TypeVar("Item")


#: In the request in hand, keys that are not known mean nothing and are no fault; so Azure has it.
UNKNOWN_KEYS_ALLOWED: ContextVar[bool] = ContextVar("UNKNOWN_KEYS_ALLOWED", default=False)


class Request(BaseModel):
    """A request body. A key that is not known is a fault (most often a misspelling); null means absent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        given = cast(dict[str, Any], value)
        if UNKNOWN_KEYS_ALLOWED.get():
            known = {field.alias or name for name, field in cls.model_fields.items()}
            given = {key: item for key, item in given.items() if key in known}
        return {key: item for key, item in given.items() if item is not None}


class Answer(BaseModel):
    """An answer's body. Every key is always there."""

    model_config = ConfigDict(frozen=True)


#: The answer in hand must fit OpenAI's published schema to the letter (the setting `strict_enums`).
STRICT_ENUMS: ContextVar[bool] = ContextVar("STRICT_ENUMS", default=False)


class Fitted(Answer):
    """An answer that says more than OpenAI's published schema knows, and is made to fit it where it must."""

    @model_serializer(mode="wrap")
    def _serialize(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = self.complete(serialize(self))
        return self.fit(values) if STRICT_ENUMS.get() else values

    def complete(self, values: dict[str, Any]) -> dict[str, Any]:
        """`values` as they are always sent."""
        return values

    def fit(self, values: dict[str, Any]) -> dict[str, Any]:
        """`values` as OpenAI's schema has them."""
        raise NotImplementedError


class Page(Answer, Generic[Item]):
    """A list in pages. `has_more` is always there: without it the SDKs behave differently."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


class PageWithIds(Page[Item], Generic[Item]):
    first_id: str | None
    last_id: str | None


def _check_unicode(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PydanticKnownError("string_unicode") from error
    return value


#: JSON can spell half a surrogate pair; no database and no tokenizer takes one.
Text = Annotated[str, AfterValidator(_check_unicode)]


def tag(name: str) -> str:
    """The tag of a union's branch. It stands in pydantic's locations, but is no part of a field's path."""
    return f"({name})"


#: The branches of unions. A value's branch is chosen first, so that this one alone reports faults.
NUMBER, AUTO, TEXT, LIST, MAP, UNKNOWN = map(tag, ("number", "auto", "text", "list", "map", "unknown"))
SPEAKING, CALLING, ANSWERING, FUNCTION = map(tag, ("speaking", "calling", "answering", "function"))
REFUSAL, TOKENS, TOKEN_LISTS = map(tag, ("refusal", "tokens", "token_lists"))
INPUT_TEXT, INPUT_IMAGE, INPUT_AUDIO = map(tag, ("input_text", "input_image", "input_audio"))
GRADER_TYPES = ("string_check", "text_similarity", "python", "score_model", "label_model", "endpoint", "multi")
#: Of Responses' items and formats.
RESPONSE_TYPES = ("message", "function_call", "function_call_output", "reasoning", "json_object", "json_schema")
INTEGRATION_TYPES = ("wandb", "mlflow", "tensorboard")
TAGS = (
    frozenset({NUMBER, AUTO, TEXT, LIST, MAP, UNKNOWN, INPUT_TEXT, INPUT_IMAGE, INPUT_AUDIO})
    | frozenset({SPEAKING, CALLING, ANSWERING, FUNCTION, REFUSAL, TOKENS, TOKEN_LISTS})
    | frozenset(map(tag, GRADER_TYPES + RESPONSE_TYPES + INTEGRATION_TYPES))
)


def _auto_or_number(value: Any) -> str:
    return AUTO if value == "auto" else NUMBER


#: Chooses between `AutoText` and a number tagged with NUMBER.
AutoOrNumber = Discriminator(_auto_or_number)
AutoText = Annotated[Literal["auto"], Tag(AUTO)]


def _text_or_list(value: Any) -> str:
    return LIST if isinstance(value, list) else TEXT


#: Chooses between `AnyText` and a list tagged with LIST.
TextOrList = Discriminator(_text_or_list)
AnyText = Annotated[Text, Tag(TEXT)]


def _text_or_tokens(value: Any) -> str:
    if not isinstance(value, list):
        return TEXT
    first = cast(list[Any], value)[0] if value else None
    return TOKEN_LISTS if isinstance(first, list) else TOKENS if isinstance(first, int) else LIST


#: Chooses, by what a list begins with, between a text, a list of texts, of token ids, and of lists of those.
TextOrTokens = Discriminator(_text_or_tokens)
TokenList = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]

MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]
