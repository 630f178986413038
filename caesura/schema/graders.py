"""Graders and what runs them (contract: `/fine_tuning/alpha/graders`). What only a grader can judge of itself (its
templates, formula, or source) is checked where it is built.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError, PydanticKnownError

from caesura.schema.common import (
    GRADER_TYPES,
    INPUT_AUDIO,
    INPUT_IMAGE,
    INPUT_TEXT,
    LIST,
    MAP,
    TEXT,
    UNKNOWN,
    Answer,
    AnyText,
    Fitted,
    Request,
    Text,
    tag,
)

Name = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


Rouge = Literal["rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]


class _Grader(Request):
    #: Left out: the key under which a multi-grader holds it, else its type.
    name: Name | None = None


class _WithThreshold(_Grader):
    #: Means something only to whoever counts passes; the reward is the score itself.
    pass_threshold: Finite | None = None


class StringCheck(_WithThreshold):
    type: Literal["string_check"]
    input: Text
    reference: Text
    operation: Literal["eq", "ne", "neq", "like", "ilike"]


class TextSimilarity(_WithThreshold):
    type: Literal["text_similarity"]
    input: Text
    reference: Text
    evaluation_metric: Literal["cosine", "fuzzy_match", "bleu", "gleu", "meteor", Rouge]


class Python(_WithThreshold):
    type: Literal["python"]
    source: Text
    image_tag: Text | None = None


class InputText(Request):
    type: Literal["input_text", "output_text", "text"]
    text: Text
    prompt_cache_breakpoint: Any = None


class InputImage(Request):
    type: Literal["input_image"]
    image_url: Text
    detail: Literal["auto", "low", "high", "original"] | None = None
    prompt_cache_breakpoint: Any = None


class Audio(Request):
    data: Text
    format: Literal["mp3", "wav"]


class InputAudio(Request):
    type: Literal["input_audio"]
    input_audio: Audio


class _UnknownBlock(Request):
    type: Literal["input_text", "output_text", "input_image", "input_audio"]


_BLOCKS = {
    "input_text": INPUT_TEXT,
    "output_text": INPUT_TEXT,
    "text": INPUT_TEXT,
    "input_image": INPUT_IMAGE,
    "input_audio": INPUT_AUDIO,
}


def _kind_of_block(value: Any) -> str:
    if isinstance(value, str):
        return TEXT
    return _BLOCKS.get(_type_of(value), UNKNOWN)


def _kind_of_content(value: Any) -> str:
    return LIST if isinstance(value, list) else _kind_of_block(value)


def _type_of(value: Any) -> str:
    """Of what was sent, and of what was made of it, which is sent back."""
    kind = cast(dict[str, Any], value).get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else ""


_Block = (
    AnyText
    | Annotated[InputText, Tag(INPUT_TEXT)]
    | Annotated[InputImage, Tag(INPUT_IMAGE)]
    | Annotated[InputAudio, Tag(INPUT_AUDIO)]
    | Annotated[_UnknownBlock, Tag(UNKNOWN)]
)
Block = Annotated[_Block, Discriminator(_kind_of_block)]
Content = Annotated[
    _Block | Annotated[list[Block], Field(min_length=1), Tag(LIST)],
    Discriminator(_kind_of_content),
]


class InputMessage(Request):
    """A message of a judge's prompt; every text in it is a template."""

    role: Literal["user", "assistant", "system", "developer"]
    type: Literal["message"] | None = None
    content: Content


class SamplingParams(Request):
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    #: OpenAI's own spelling; the chat endpoint's is taken too.
    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


Messages = Annotated[list[InputMessage], Field(min_length=1)]
Labels = Annotated[list[Text], Field(min_length=1)]


class ScoreModel(_WithThreshold):
    type: Literal["score_model"]
    model: Text
    input: Messages
    range: Annotated[list[Finite], Field(min_length=2, max_length=2)] | None = None
    sampling_params: SamplingParams | None = None


class LabelModel(_Grader):
    type: Literal["label_model"]
    model: Text
    input: Messages
    labels: Labels
    passing_labels: Labels
    sampling_params: SamplingParams | None = None


class Endpoint(_WithThreshold):
    """Azure's: a web service of the user's that scores."""

    type: Literal["endpoint"]
    url: Text
    headers: dict[str, Text] | None = None
    rate_limit: Annotated[int, Field(ge=1)] | None = None


SingleType = Literal["string_check", "text_similarity", "python", "score_model", "label_model", "endpoint"]
GraderType = Literal[SingleType, "multi"]


class _UnknownGrader(_Grader):
    type: GraderType


class _UnknownPart(_Grader):
    type: SingleType


def _refuse_nesting(_value: Any) -> Any:
    raise PydanticCustomError("nested_multi", "a multi grader cannot hold another multi grader")


class _NestedMulti(_Grader):
    type: Annotated[Any, AfterValidator(_refuse_nesting)]


def _kind_of_grader(value: Any) -> str:
    kind = _type_of(value)
    return tag(kind) if kind in GRADER_TYPES else UNKNOWN


_Single = (
    Annotated[StringCheck, Tag(tag("string_check"))]
    | Annotated[TextSimilarity, Tag(tag("text_similarity"))]
    | Annotated[Python, Tag(tag("python"))]
    | Annotated[ScoreModel, Tag(tag("score_model"))]
    | Annotated[LabelModel, Tag(tag("label_model"))]
    | Annotated[Endpoint, Tag(tag("endpoint"))]
)
_Part = _Single | Annotated[_NestedMulti, Tag(tag("multi"))] | Annotated[_UnknownPart, Tag(UNKNOWN)]
Part = Annotated[_Part, Discriminator(_kind_of_grader)]
MAX_PARTS = 64


def _kind_of_parts(value: Any) -> str:
    if isinstance(value, list):
        return LIST
    # A grader has a type, which is a text; a map may hold a grader under the key `type`.
    return _kind_of_grader(value) if _type_of(value) else MAP


Parts = Annotated[
    _Part
    | Annotated[dict[Name, Part], Field(min_length=1, max_length=MAX_PARTS), Tag(MAP)]
    | Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS), Tag(LIST)],
    Discriminator(_kind_of_parts),
]


class Multi(_Grader):
    """`graders` has three forms: a map (the documented one), a list, and one grader alone."""

    type: Literal["multi"]
    graders: Parts
    calculate_output: Text


AnyGrader = Annotated[
    _Single | Annotated[Multi, Tag(tag("multi"))] | Annotated[_UnknownGrader, Tag(UNKNOWN)],
    Discriminator(_kind_of_grader),
]


def _check_item(item: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(item, ensure_ascii=False, allow_nan=False).encode()
    except (UnicodeEncodeError, ValueError, RecursionError) as error:
        raise PydanticKnownError("string_unicode") from error
    return item


class RunGrader(Request):
    grader: AnyGrader
    model_sample: Text
    item: Annotated[dict[str, Any], AfterValidator(_check_item)] | None = None
    #: What older clients send in the place of `item`.
    reference_answer: Any = None


class ValidateGrader(Request):
    grader: AnyGrader


class ErrorsOfGrade(Answer):
    formula_parse_error: bool
    sample_parse_error: bool
    truncated_observation_error: bool
    unresponsive_reward_error: bool
    invalid_variable_error: bool
    other_error: bool
    python_grader_server_error: bool
    python_grader_server_error_type: str | None
    python_grader_runtime_error: bool
    python_grader_runtime_error_details: str | None
    model_grader_server_error: bool
    model_grader_refusal_error: bool
    model_grader_parse_error: bool
    model_grader_server_error_details: str | None


class GraderTokens(Answer):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    cached_tokens: int


class MetadataOfGrade(Fitted):
    name: str
    type: str
    errors: ErrorsOfGrade
    #: Seconds.
    execution_time: float
    scores: dict[str, float]
    token_usage: GraderTokens | None
    sampled_model_name: str | None
    #: What each error flag means in this case, in words; not in OpenAI's schema.
    error_details: str | None

    def fit(self, values: dict[str, Any]) -> dict[str, Any]:
        return values | {"token_usage": None if self.token_usage is None else self.token_usage.total_tokens}


class GraderRun(Answer):
    reward: float
    metadata: MetadataOfGrade
    sub_rewards: dict[str, float]
    model_grader_token_usage_per_model: dict[str, GraderTokens]


class ValidatedGrader(Answer):
    grader: dict[str, Any]
