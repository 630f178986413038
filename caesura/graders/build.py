"""From a grader as it was sent to one that is checked and ready."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from caesura.errors import InvalidGrader
from caesura.graders.comparer import Comparer
from caesura.graders.endpoint import build_endpoint
from caesura.graders.formula import parse_formula
from caesura.graders.grade import Grader
from caesura.graders.judges import Judge, Judges, SamplingParams
from caesura.graders.model import (
    AudioBlock,
    Block,
    ImageBlock,
    LabelModelGrader,
    PromptMessage,
    ScoreModelGrader,
    TextBlock,
)
from caesura.graders.multi import MultiGrader, check_names, variables_of_list, variables_of_map
from caesura.graders.python import PythonGrader, check_source
from caesura.graders.sandbox import Sandbox
from caesura.graders.string_check import OPERATIONS, StringCheckGrader
from caesura.graders.template import parse_template
from caesura.graders.text_similarity import CosineGrader, Embed, TextSimilarityGrader
from caesura.schema import graders as wire


@dataclass(frozen=True, slots=True)
class Tools:
    """What graders work with. Who makes it closes it."""

    judges: Judges
    comparer: Comparer
    #: The judge of that name; None if there is none.
    find_judge: Callable[[str], Judge | None]
    #: None: this machine cannot jail Python.
    sandbox: Sandbox | None
    #: None: no embedding model is configured.
    embed: Embed | None
    #: For endpoints.
    client: httpx.AsyncClient
    allowed_private_hosts: Sequence[str]

    async def close(self) -> None:
        if self.sandbox is not None:
            await self.sandbox.close()
        await self.judges.close()
        await self.comparer.close()
        await self.client.aclose()


def build_grader(spec: wire.AnyGrader | wire.Part, tools: Tools, param: str) -> Grader:
    """The grader of `spec`, which was sent as `param`. Raises InvalidGrader for the field below that is faulty."""
    return GRADERS[spec.type](spec, tools, param, spec.name or spec.type)


def _build_string_check(spec: wire.StringCheck, _tools: Tools, param: str, name: str) -> Grader:
    text, reference = parse_template(spec.input, f"{param}.input"), parse_template(spec.reference, f"{param}.reference")
    return StringCheckGrader(name, text, reference, OPERATIONS[spec.operation])


def _build_text_similarity(spec: wire.TextSimilarity, tools: Tools, param: str, name: str) -> Grader:
    text, reference = parse_template(spec.input, f"{param}.input"), parse_template(spec.reference, f"{param}.reference")
    if spec.evaluation_metric != "cosine":
        return TextSimilarityGrader(name, text, reference, spec.evaluation_metric, tools.comparer)
    if tools.embed is None:
        raise InvalidGrader(
            "'cosine' needs an embedding model, and this server has none. Name one by the setting embedding_model, or "
            "use another evaluation_metric.",
            param=f"{param}.evaluation_metric",
        )
    return CosineGrader(name, text, reference, tools.embed)


def _build_python(spec: wire.Python, tools: Tools, param: str, name: str) -> Grader:
    if tools.sandbox is None:
        raise InvalidGrader(
            "This server's machine has no sandbox for Python graders, and they are not run without one. The server's "
            "page on its sandbox says what it takes.",
            param=f"{param}.type",
        )
    check_source(spec.source, f"{param}.source")
    return PythonGrader(name, spec.source, tools.sandbox)


def _build_score_model(spec: wire.ScoreModel, tools: Tools, param: str, name: str) -> Grader:
    low, high = spec.range or (0.0, 1.0)
    if low >= high:
        raise InvalidGrader(
            f"The range [{low:g}, {high:g}] is empty: its first number must be below its second.",
            param=f"{param}.range",
        )
    return ScoreModelGrader(
        name,
        _find_judge(tools, spec.model, param),
        tools.judges,
        _build_messages(spec.input, f"{param}.input"),
        _build_sampling(spec.sampling_params),
        (low, high),
    )


def _build_label_model(spec: wire.LabelModel, tools: Tools, param: str, name: str) -> Grader:
    for index, label in enumerate(spec.labels):
        if label in spec.labels[:index]:
            raise InvalidGrader(f"The label '{label}' is there twice.", param=f"{param}.labels[{index}]")
    for index, label in enumerate(spec.passing_labels):
        if label not in spec.labels:
            raise InvalidGrader(
                f"The passing label '{label}' is none of the labels: {', '.join(map(repr, spec.labels))}.",
                param=f"{param}.passing_labels[{index}]",
            )
    return LabelModelGrader(
        name,
        _find_judge(tools, spec.model, param),
        tools.judges,
        _build_messages(spec.input, f"{param}.input"),
        spec.labels,
        spec.passing_labels,
        _build_sampling(spec.sampling_params),
    )


def _build_endpoint(spec: wire.Endpoint, tools: Tools, param: str, name: str) -> Grader:
    return build_endpoint(
        name,
        spec.url,
        spec.headers or {},
        spec.rate_limit,
        allowed=tools.allowed_private_hosts,
        client=tools.client,
        param=param,
    )


def _build_multi(spec: wire.Multi, tools: Tools, param: str, name: str) -> Grader:
    formula_param = f"{param}.calculate_output"
    formula = parse_formula(spec.calculate_output, formula_param)
    if isinstance(spec.graders, dict):
        graders = {
            key: GRADERS[part.type](part, tools, f"{param}.graders.{key}", part.name or key)
            for key, part in spec.graders.items()
        }
        variables = variables_of_map(list(graders))
    else:
        graders = _build_list(spec.graders, tools, f"{param}.graders")
        variables = variables_of_list(graders, formula, formula_param)
    check_names(formula, variables, formula_param)
    return MultiGrader(name, graders, variables, formula)


def _build_list(graders: list[wire.Part] | wire.Part, tools: Tools, param: str) -> dict[str, Grader]:
    """By their names, which must differ."""
    if not isinstance(graders, list):
        grader = build_grader(graders, tools, param)
        return {grader.name: grader}
    built = [build_grader(part, tools, f"{param}[{index}]") for index, part in enumerate(graders)]
    seen = Counter[str]()
    for index, grader in enumerate(built):
        seen[grader.name] += 1
        if seen[grader.name] > 1:
            raise InvalidGrader(
                f"Two graders have the name '{grader.name}'. Give each its own.", param=f"{param}[{index}].name"
            )
    return {grader.name: grader for grader in built}


def _find_judge(tools: Tools, model: str, param: str) -> Judge:
    judge = tools.find_judge(model)
    if judge is None:
        raise InvalidGrader(
            f"The model '{model[:200]}' is neither one of this server's nor a judge of its settings. "
            "GET /v1/models lists the first; the table [judges] of the settings holds the second.",
            param=f"{param}.model",
        )
    return judge


def _build_sampling(params: wire.SamplingParams | None) -> SamplingParams:
    if params is None:
        return SamplingParams()
    return SamplingParams(
        seed=params.seed,
        top_p=params.top_p,
        temperature=params.temperature,
        max_completion_tokens=params.max_completions_tokens or params.max_completion_tokens,
        reasoning_effort=params.reasoning_effort,
    )


def _build_messages(messages: Sequence[wire.InputMessage], param: str) -> list[PromptMessage]:
    built: list[PromptMessage] = []
    for index, message in enumerate(messages):
        content, path = message.content, f"{param}[{index}].content"
        if isinstance(content, list):
            blocks = [_build_block(block, f"{path}[{number}]") for number, block in enumerate(content)]
        else:
            blocks = [_build_block(content, path)]
        built.append(PromptMessage(message.role, blocks))
    return built


def _build_block(block: wire.Block, param: str) -> Block:
    if isinstance(block, str):
        return TextBlock(parse_template(block, param))
    if isinstance(block, wire.InputText):
        return TextBlock(parse_template(block.text, f"{param}.text"))
    if isinstance(block, wire.InputImage):
        return ImageBlock(parse_template(block.image_url, f"{param}.image_url"), block.detail)
    assert isinstance(block, wire.InputAudio)  # the schema lets no other through
    audio = block.input_audio
    return AudioBlock(parse_template(audio.data, f"{param}.input_audio.data"), audio.format)


#: A grader's type → what builds it, of its spec, the tools, the field it was sent as, and its name.
GRADERS: Mapping[str, Callable[[Any, Tools, str, str], Grader]] = {
    "string_check": _build_string_check,
    "text_similarity": _build_text_similarity,
    "python": _build_python,
    "score_model": _build_score_model,
    "label_model": _build_label_model,
    "endpoint": _build_endpoint,
    "multi": _build_multi,
}
