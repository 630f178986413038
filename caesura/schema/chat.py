"""Chat Completions (contract: `/chat/completions`), as far as the engine goes: text and calls of functions."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer

from caesura.schema.common import (
    ANSWERING,
    CALLING,
    FUNCTION,
    LIST,
    MAP,
    REFUSAL,
    SPEAKING,
    TEXT,
    Answer,
    AnyText,
    Metadata,
    Request,
    Text,
    TextOrList,
)
from caesura.schema.sampling import FormatName, Refused, Sampling, SchemaObject, Usage

#: The schema of `json_object`.
ANY_OBJECT = {"type": "object"}
MAX_TOOLS = 128

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
FinishReason = Literal["stop", "length", "tool_calls", "function_call"]


# Messages.


class TextPart(Request):
    """A part of a message's content; the other types need models that see or hear."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text"]
    text: Text


class RefusalPart(Request):
    model_config = ConfigDict(extra="allow")

    type: Literal["refusal"]
    refusal: Text


class AssistantTextPart(Request):
    model_config = ConfigDict(extra="allow")

    #: A refusal never comes here: it is named for those who are told what there is.
    type: Literal["text", "refusal"]
    text: Text


def _kind_of_part(value: Any) -> str:
    """Of what JSON holds, and of what was made of it."""
    kind = cast(dict[str, Any], value).get("type") if isinstance(value, dict) else None
    return REFUSAL if kind == "refusal" or isinstance(value, RefusalPart) else TEXT


AssistantPart = Annotated[
    Annotated[AssistantTextPart, Tag(TEXT)] | Annotated[RefusalPart, Tag(REFUSAL)], Discriminator(_kind_of_part)
]
Content = Annotated[AnyText | Annotated[list[TextPart], Tag(LIST)], TextOrList]
AssistantContent = Annotated[AnyText | Annotated[list[AssistantPart], Tag(LIST)], TextOrList]


class CalledFunction(Request):
    model_config = ConfigDict(extra="allow")

    name: Text
    #: JSON text, as the model wrote it.
    arguments: Text


class MessageToolCall(Request):
    model_config = ConfigDict(extra="allow")

    id: Text
    type: Literal["function"]
    function: CalledFunction


class SpeakingMessage(Request):
    model_config = ConfigDict(extra="allow")

    role: Role
    content: Content


class AssistantMessage(Request):
    """It may call functions instead of saying something."""

    model_config = ConfigDict(extra="allow")

    role: Literal["assistant"]
    content: AssistantContent | None = None
    tool_calls: list[MessageToolCall] | None = None
    function_call: CalledFunction | None = None


class ToolMessage(Request):
    model_config = ConfigDict(extra="allow")

    role: Literal["tool"]
    content: Content
    tool_call_id: Text


class FunctionMessage(Request):
    """The older form of a tool's message."""

    model_config = ConfigDict(extra="allow")

    role: Literal["function"]
    name: Text
    content: Content | None = None


_MESSAGES = {"assistant": CALLING, "tool": ANSWERING, "function": FUNCTION}


def _kind_of_message(value: Any) -> str:
    role = cast(dict[str, Any], value).get("role") if isinstance(value, dict) else None
    return _MESSAGES.get(role, SPEAKING) if isinstance(role, str) else SPEAKING


Message = Annotated[
    Annotated[SpeakingMessage, Tag(SPEAKING)]
    | Annotated[AssistantMessage, Tag(CALLING)]
    | Annotated[ToolMessage, Tag(ANSWERING)]
    | Annotated[FunctionMessage, Tag(FUNCTION)],
    Discriminator(_kind_of_message),
]


# Formats and tools.


class JsonSchema(Request):
    """`strict` changes nothing: answers always keep to the schema."""

    name: FormatName
    description: str | None = None
    schema_: SchemaObject = Field(alias="schema", default_factory=lambda: dict(ANY_OBJECT))
    strict: bool | None = None


class ResponseFormat(Request):
    """`json_schema` belongs to the type of its name."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Function(Request):
    """Left out, `parameters` are none at all."""

    name: FormatName
    description: Text | None = None
    parameters: SchemaObject | None = None
    strict: bool | None = None


class Tool(Request):
    type: Literal["function"]
    function: Function


class NamedFunction(Request):
    name: Text


class NamedTool(Request):
    type: Literal["function"]
    function: NamedFunction


def _text_or_map(value: Any) -> str:
    return MAP if isinstance(value, dict) else TEXT


_TextOrMap = Discriminator(_text_or_map)
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(TEXT)] | Annotated[NamedTool, Tag(MAP)], _TextOrMap
]
FunctionChoice = Annotated[
    Annotated[Literal["none", "auto"], Tag(TEXT)] | Annotated[NamedFunction, Tag(MAP)], _TextOrMap
]


class CreateChatCompletion(Sampling):
    """Of the two limits of tokens, the newer wins. `functions` and `function_call` are the older form of tools.
    `prediction` is taken and left: it only could make the same answer come sooner.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(max_length=MAX_TOOLS)] | None = None
    function_call: FunctionChoice | None = None
    modalities: list[Literal["text"]] | None = None
    audio: Refused = None
    web_search_options: Refused = None
    prediction: dict[str, Any] | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None


# Answers.


class LikelyToken(Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(LikelyToken):
    top_logprobs: list[LikelyToken]


class Logprobs(Answer):
    content: list[TokenLogprobs]
    refusal: None = None


class FunctionCalled(Answer):
    name: str
    arguments: str


class ToolCalled(Answer):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCalled


class AnswerMessage(Answer):
    """Calls are there only where there are some: clients take an empty list for a call."""

    role: Literal["assistant"] = "assistant"
    #: None: it calls functions, and says nothing beside.
    content: str | None
    refusal: None = None
    annotations: list[Any] = []
    tool_calls: list[ToolCalled] | None = None
    function_call: FunctionCalled | None = None

    @model_serializer(mode="wrap")
    def _leave_out_no_calls(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        absent = {name for name in ("tool_calls", "function_call") if getattr(self, name) is None}
        return {name: value for name, value in serialize(self).items() if name not in absent}


class Choice(Answer):
    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: Literal["default"] = "default"
    system_fingerprint: str


class FunctionDelta(Answer):
    name: str | None = None
    arguments: str


class ToolCallDelta(Answer):
    """The first piece of a call has all keys, a later one its index and the next of the arguments."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    tool_calls: list[ToolCallDelta] | None = None
    function_call: FunctionDelta | None = None


class ChunkChoice(Answer):
    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Answer):
    """Of a chunk's parts, only what is set is sent."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    service_tier: Literal["default"]
    system_fingerprint: str
    choices: list[ChunkChoice]
    #: With `include_usage`: null in every chunk but the last, which has no choices; else left out.
    usage: Usage | None = None
