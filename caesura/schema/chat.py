"""Chat Completions (contract: `/chat/completions`), as far as the engine goes: text in, text out."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError

from caesura.schema.common import (
    CALLING,
    LIST,
    SPEAKING,
    Answer,
    AnyText,
    Metadata,
    NotOffered,
    Request,
    Text,
    TextOrList,
)

#: The schema of `json_object`.
ANY_OBJECT = {"type": "object"}
MAX_SCHEMA_OBJECTS = 1000
MAX_SCHEMA_DEPTH = 100

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Stop = Annotated[AnyText | Annotated[list[Text], Field(min_length=1, max_length=4), Tag(LIST)], TextOrList]


class TextPart(Request):
    """A part of a message's content; the other types need models that see or hear."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text"]
    text: Text


Content = Annotated[AnyText | Annotated[list[TextPart], Tag(LIST)], TextOrList]


class SpeakingMessage(Request):
    model_config = ConfigDict(extra="allow")

    role: Role
    content: Content


class CallingMessage(Request):
    """Of the roles that need no content: they may call a tool, or answer one in the older form."""

    model_config = ConfigDict(extra="allow")

    role: Role
    content: Content | None = None


def _kind_of_message(value: Any) -> str:
    role = cast(dict[str, Any], value).get("role") if isinstance(value, dict) else None
    return CALLING if role in ("assistant", "function") else SPEAKING


Message = Annotated[
    Annotated[SpeakingMessage, Tag(SPEAKING)] | Annotated[CallingMessage, Tag(CALLING)],
    Discriminator(_kind_of_message),
]


class StreamOptions(Request):
    include_usage: bool = False
    include_obfuscation: bool = False


def _check_size(schema: dict[str, Any]) -> dict[str, Any]:
    """Grammars are compiled by recursion: a schema that is too large would end the engine, not only its request."""
    values: list[tuple[Any, int]] = [(schema, 1)]
    num_objects = 0
    while values:
        value, depth = values.pop()
        if not isinstance(value, (dict, list)):
            continue
        num_objects += isinstance(value, dict)
        if num_objects > MAX_SCHEMA_OBJECTS or depth > MAX_SCHEMA_DEPTH:
            raise PydanticCustomError(
                "schema_too_large",
                "a schema may hold {objects} objects, nested {depth} deep with its lists; this one is larger",
                {"objects": MAX_SCHEMA_OBJECTS, "depth": MAX_SCHEMA_DEPTH},
            )
        items = cast(dict[str, Any], value).values() if isinstance(value, dict) else cast(list[Any], value)
        values += [(item, depth + 1) for item in items]
    return schema


class JsonSchema(Request):
    """`strict` changes nothing: answers always keep to the schema."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], AfterValidator(_check_size)] = Field(
        alias="schema", default_factory=lambda: dict(ANY_OBJECT)
    )
    strict: bool | None = None


class ResponseFormat(Request):
    """`json_schema` belongs to the type of its name."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class CreateChatCompletion(Request):
    """What changes the answer is either done or a fault; what does not is taken and left."""

    model: Text
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Literal[1] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None
    tools: NotOffered | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None


class AnswerMessage(Answer):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    annotations: list[Any] = []


class Choice(Answer):
    index: int = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChunkChoice(Answer):
    index: int = 0
    delta: Delta
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatCompletionChunk(Answer):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    #: With `include_usage`: null in every chunk but the last, which has no choices; else left out.
    usage: Usage | None = None
