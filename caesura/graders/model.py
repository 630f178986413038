"""`score_model` and `label_model`: a judge reads the answer, and says what it is worth.

The judge must answer in JSON, its reasons first: `{"steps": [{"description", "conclusion"}, …], "result": …}`. A
strict JSON schema forces it where the judge's API can, and a system message asks for it in every case, for a judge
cannot see the schema it is held to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from caesura.graders.calls import quote, read_number
from caesura.graders.grade import Flag, GraderFault, Observation, Score, parse_object
from caesura.graders.judges import AnswerSchema, Judge, Judges, SamplingParams, Verdict
from caesura.graders.template import Template

_MAX_QUOTED = 120
_STEP = {"description": {"type": "string"}, "conclusion": {"type": "string"}}


@dataclass(frozen=True, slots=True)
class TextBlock:
    text: Template


@dataclass(frozen=True, slots=True)
class ImageBlock:
    image_url: Template
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class AudioBlock:
    #: In base64.
    data: Template
    format: str


Block = TextBlock | ImageBlock | AudioBlock


@dataclass(frozen=True, slots=True)
class PromptMessage:
    """A message of a judge's prompt."""

    role: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class ScoreModelGrader:
    """The reward is the judge's number, moved into `range` where it lies outside."""

    name: str
    judge: Judge
    judges: Judges
    messages: Sequence[PromptMessage]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    range: tuple[float, float] = (0.0, 1.0)
    type: str = "score_model"

    async def score(self, observation: Observation) -> Score:
        low, high = self.range
        instruction = _instruct(f"a number from {low:.12g} to {high:.12g}, the score")
        messages = render_messages(self.messages, instruction, observation)
        verdict = await self.judges.ask(
            self.judge, messages, _answer_schema("score", {"type": "number"}), self.sampling
        )
        result = read_number(_read_result(self.judge, verdict))
        if result is None:
            raise _no_result(self.judge, verdict)
        return _score(self.judge, verdict, min(max(result, low), high))


@dataclass(frozen=True, slots=True)
class LabelModelGrader:
    """The reward is 1 where the judge's label is among `passing_labels`, else 0."""

    name: str
    judge: Judge
    judges: Judges
    messages: Sequence[PromptMessage]
    labels: Sequence[str]
    passing_labels: Sequence[str]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    type: str = "label_model"

    async def score(self, observation: Observation) -> Score:
        instruction = _instruct(f"one of these labels: {', '.join(_dump(label) for label in self.labels)}")
        messages = render_messages(self.messages, instruction, observation)
        schema = _answer_schema("label", {"type": "string", "enum": list(self.labels)})
        verdict = await self.judges.ask(self.judge, messages, schema, self.sampling)
        result = _read_result(self.judge, verdict)
        if result not in self.labels:
            raise _no_result(self.judge, verdict)
        return _score(self.judge, verdict, float(result in self.passing_labels))


def render_messages(
    messages: Sequence[PromptMessage], instruction: str, observation: Observation
) -> list[dict[str, Any]]:
    """Messages of Chat Completions, led by `instruction`: as the end of the system message that comes first, else as
    a message of its own, for many chat templates take one system message only, and only there.
    """
    rendered = [{"role": message.role, "content": _render(message.blocks, observation)} for message in messages]
    first = rendered[0]
    if first["role"] in ("system", "developer") and isinstance(first["content"], str):
        return [first | {"content": f"{first['content']}\n\n{instruction}"}, *rendered[1:]]
    return [{"role": "system", "content": instruction}, *rendered]


def _render(blocks: Sequence[Block], observation: Observation) -> str | list[dict[str, Any]]:
    """A text alone stays plain: the chat templates of many small models know no parts."""
    if len(blocks) == 1 and isinstance(blocks[0], TextBlock):
        return blocks[0].text.render(observation)
    return [_to_part(block, observation) for block in blocks]


def _to_part(block: Block, observation: Observation) -> dict[str, Any]:
    match block:
        case TextBlock(text):
            return {"type": "text", "text": text.render(observation)}
        case ImageBlock(image_url, detail):
            image = {"url": image_url.render(observation)} | ({} if detail is None else {"detail": detail})
            return {"type": "image_url", "image_url": image}
        case AudioBlock(data, format):
            return {"type": "input_audio", "input_audio": {"data": data.render(observation), "format": format}}


def _instruct(result: str) -> str:
    return (
        'Answer with one JSON object and nothing else: {"steps": [{"description": "…", "conclusion": "…"}], '
        f'"result": …}}. "steps" are your reasons, one after the other; "result" is {result}.'
    )


def _answer_schema(name: str, result: Mapping[str, Any]) -> AnswerSchema:
    steps = {"type": "array", "items": _object_schema(_STEP)}
    return AnswerSchema(name, _object_schema({"steps": steps, "result": result}))


def _object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    """As strict schemas must be: every property there, and no other."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _read_result(judge: Judge, verdict: Verdict) -> Any:
    """Raises GraderFault where the judge refused, or answered with no JSON object that has a `result`."""
    if verdict.refusal or verdict.finish_reason == "content_filter":
        reason = f": {quote(verdict.refusal, _MAX_QUOTED)}" if verdict.refusal else ": its API filtered the content."
        raise _fault(judge, verdict, f"refused to answer{reason}", "model_grader_refusal_error")
    answer = parse_object(verdict.text or "")
    if answer is None or "result" not in answer:
        raise _no_result(judge, verdict)
    return answer["result"]


def _no_result(judge: Judge, verdict: Verdict) -> GraderFault:
    text = quote(verdict.text or "", _MAX_QUOTED)
    if verdict.finish_reason == "length":
        words = f"was cut off by its token limit; raise the grader's max_completions_tokens. It answered: '{text}'"
        return _fault(judge, verdict, words, "model_grader_parse_error", "truncated_observation_error")
    words = f"did not answer in JSON with a 'result' of the kind asked for. It answered: '{text}'"
    return _fault(judge, verdict, words, "model_grader_parse_error")


def _fault(judge: Judge, verdict: Verdict, words: str, *flags: Flag) -> GraderFault:
    score = _score(judge, verdict, 0.0)
    return GraderFault(
        *flags,
        details=f"The judge '{judge.name}' {words}",
        usage=score.usage,
        sampled_model_name=score.sampled_model_name,
    )


def _score(judge: Judge, verdict: Verdict, reward: float) -> Score:
    return Score(reward, usage={judge.name: verdict.usage}, sampled_model_name=verdict.model)


def _dump(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
