"""What Chat Completions, Completions and Responses say alike of how an answer is sampled."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import AfterValidator, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError

from caesura.schema.common import LIST, Answer, AnyText, Request, Text, TextOrList

MAX_SCHEMA_OBJECTS = 1000
MAX_SCHEMA_DEPTH = 100

Stop = Annotated[AnyText | Annotated[list[Text], Field(min_length=1, max_length=4), Tag(LIST)], TextOrList]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
#: No more digits than a token's id can have.
TokenId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class StreamOptions(Request):
    include_usage: bool = False
    include_obfuscation: bool = False


class Sampling(Request):
    """What changes the answer is either done or a fault; what does not is taken and left."""

    model: Text
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Bias] | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


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


#: A JSON schema that an answer, or a call's arguments, are held to.
SchemaObject = Annotated[dict[str, Any], AfterValidator(_check_size)]
#: Of a function, or of an answer's format.
FormatName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _refuse(_value: Any) -> Any:
    raise PydanticCustomError("not_offered", "this server does not offer it")


#: What a client may leave out, and nothing else.
Refused = Annotated[Any, AfterValidator(_refuse)]


class PromptDetails(Answer):
    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(Answer):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(Answer):
    """Of chats and completions; the details are those of models of another kind."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails = PromptDetails()
    completion_tokens_details: CompletionDetails = CompletionDetails()
