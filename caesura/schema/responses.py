"""Responses (contract: `/responses`): text and function calls in, text and function calls out."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    Tag,
    model_serializer,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from caesura.schema.chat import MAX_TOOLS, Function, NamedFunction, TokenLogprobs
from caesura.schema.common import (
    LIST,
    MAP,
    REFUSAL,
    TEXT,
    UNKNOWN,
    Answer,
    AnyText,
    Metadata,
    Request,
    Text,
    TextOrList,
    tag,
)
from caesura.schema.sampling import FormatName, Refused, SchemaObject, Temperature, TopP

#: In `include`: asks for the log-probabilities of the answer's tokens.
LOGPROBS = "message.output_text.logprobs"


def _by_type(*types: str, default: str | None = None) -> Discriminator:
    """Chooses a union's branch by the value's `type`; `default` is that of a value without one."""

    def choose(value: Any) -> str:
        kind = cast(dict[str, Any], value).get("type") or default if isinstance(value, dict) else None
        return tag(kind) if kind in types else UNKNOWN

    return Discriminator(choose)


# What comes in.

Status = Literal["in_progress", "completed", "incomplete"]
Id = Annotated[Text, StringConstraints(min_length=1, max_length=64)]


class TextPart(Request):
    #: `refusal` never comes here: it is named for those who are told what there is.
    type: Literal["input_text", "output_text", "refusal"]
    text: Text
    #: What a part of an answer holds beside its text, when it comes back in.
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    prompt_cache_breakpoint: Any = None


class RefusalPart(Request):
    type: Literal["refusal"]
    refusal: Text


def _kind_of_part(value: Any) -> str:
    kind = cast(dict[str, Any], value).get("type") if isinstance(value, dict) else None
    return REFUSAL if kind == "refusal" else TEXT


Part = Annotated[Annotated[TextPart, Tag(TEXT)] | Annotated[RefusalPart, Tag(REFUSAL)], Discriminator(_kind_of_part)]
Content = Annotated[AnyText | Annotated[list[Part], Tag(LIST)], TextOrList]


class Message(Request):
    type: Literal["message"] = "message"
    id: Id | None = None
    status: Status | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    phase: str | None = None


class CallItem(Request):
    type: Literal["function_call"]
    id: Id | None = None
    status: Status | None = None
    call_id: Id
    name: Annotated[Text, StringConstraints(min_length=1)]
    arguments: Text


class CallOutput(Request):
    type: Literal["function_call_output"]
    id: Id | None = None
    status: Status | None = None
    call_id: Id
    output: Content


class ReasoningItem(Request):
    """Of a model that shows its reasoning; nothing here reads it."""

    model_config = ConfigDict(extra="allow")

    type: Literal["reasoning"]


class _UnknownItem(Request):
    model_config = ConfigDict(extra="allow")

    type: Literal["message", "function_call", "function_call_output", "reasoning"]


Item = Annotated[
    Annotated[Message, Tag(tag("message"))]
    | Annotated[CallItem, Tag(tag("function_call"))]
    | Annotated[CallOutput, Tag(tag("function_call_output"))]
    | Annotated[ReasoningItem, Tag(tag("reasoning"))]
    | Annotated[_UnknownItem, Tag(UNKNOWN)],
    _by_type("message", "function_call", "function_call_output", "reasoning", default="message"),
]
Input = Annotated[AnyText | Annotated[list[Item], Field(min_length=1), Tag(LIST)], TextOrList]


def _check_json(schema: dict[str, Any]) -> dict[str, Any]:
    """The response repeats the schema, and JSON holds neither half a surrogate pair nor what is no number."""
    try:
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise PydanticKnownError("string_unicode") from error
    except ValueError as error:
        raise PydanticCustomError(
            "not_json", "it holds a number that is not finite, which JSON does not know"
        ) from error
    return schema


Schema = Annotated[SchemaObject, AfterValidator(_check_json)]


class _OfFunction(Request):
    type: Literal["function"]


# Of several bases the last has the first fields, and of several faults the first is told: that of the type.
class FunctionTool(Function, _OfFunction):
    """A function of the client's: flat, unlike Chat Completions'. Tools that OpenAI hosts are not offered."""

    parameters: Schema | None = None


class ChosenFunction(NamedFunction, _OfFunction):
    pass


def _kind_of_choice(value: Any) -> str:
    return MAP if isinstance(value, dict) else TEXT


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(TEXT)] | Annotated[ChosenFunction, Tag(MAP)],
    Discriminator(_kind_of_choice),
]


class TextFormat(Request):
    type: Literal["text"]


class JsonObjectFormat(Request):
    type: Literal["json_object"]


class JsonSchemaFormat(Request):
    """`strict` changes nothing: answers always keep to the schema."""

    type: Literal["json_schema"]
    name: FormatName
    schema_: Schema = Field(alias="schema")
    description: Text | None = None
    strict: bool | None = None


class _UnknownFormat(Request):
    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"]


Format = Annotated[
    Annotated[TextFormat, Tag(tag("text"))]
    | Annotated[JsonObjectFormat, Tag(tag("json_object"))]
    | Annotated[JsonSchemaFormat, Tag(tag("json_schema"))]
    | Annotated[_UnknownFormat, Tag(UNKNOWN)],
    _by_type("text", "json_object", "json_schema"),
]


class TextConfig(Request):
    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class StreamOptions(Request):
    include_obfuscation: bool = False


Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class CreateResponse(Request):
    """What changes the answer is either done or a fault; what does not is taken and left."""

    model: Text
    input: Input
    instructions: Text | None = None
    previous_response_id: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=16)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[Include] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    text: TextConfig | None = None
    truncation: Literal["disabled"] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    background: Literal[False] | None = None
    conversation: Refused | None = None
    prompt: Refused | None = None
    context_management: Refused | None = None
    moderation: Refused | None = None
    reasoning: dict[str, Any] | None = None
    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None


# What goes out.


class OutputText(Answer):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprobs] = []


class OutputMessage(Answer):
    id: str
    type: Literal["message"] = "message"
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class FunctionCall(Answer):
    id: str
    type: Literal["function_call"] = "function_call"
    status: Status
    call_id: str
    name: str
    #: JSON text.
    arguments: str


class ErrorOfResponse(Answer):
    code: Literal["server_error", "invalid_prompt"]
    message: str


class IncompleteDetails(Answer):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Reasoning(Answer):
    effort: None = None
    summary: None = None


class InputTokensDetails(Answer):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(Answer):
    reasoning_tokens: int = 0


class Usage(Answer):
    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class Response(Answer):
    """The values are those that applied. `usage` is left out until it is known, `user` where the client names none."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    completed_at: int | None = None
    background: Literal[False] = False
    error: ErrorOfResponse | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputMessage | FunctionCall] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: Reasoning = Reasoning()
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: Usage | None = None
    user: str | None
    metadata: Metadata | None

    @model_serializer(mode="wrap")
    def _leave_out(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = serialize(self)
        return {key: value for key, value in values.items() if value is not None or key not in ("usage", "user")}
