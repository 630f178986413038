"""What a grader sees (`Observation`), what it says (`Grade`), and how it fails (`GraderFault`).

A grader never brings down whoever asks it: its faults are flags of the grade, whose reward is then 0.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NoReturn, Protocol, cast

logger = logging.getLogger(__name__)

Flag = Literal[
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
]


@dataclass(frozen=True, slots=True)
class Observation:
    """An answer to be graded, and the row of data it answers."""

    #: The row's keys; templates call it `item`.
    item: Mapping[str, Any]
    #: `choices`, `output_text`, `output_json`, `output_tools`, and `output_audio` where there is one.
    #: `output_json` is None where the text is not a JSON object.
    sample: Mapping[str, Any]

    @property
    def is_cut_off(self) -> bool:
        """The answer met its limit of tokens."""
        return any(choice.get("finish_reason") == "length" for choice in self.sample["choices"])

    @property
    def is_empty(self) -> bool:
        """The model said nothing and called nothing."""
        return not (self.sample["output_text"] or self.sample["output_tools"] or self.sample.get("output_audio"))


def observe_text(text: str, item: Mapping[str, Any]) -> Observation:
    """The observation of an answer that is known by its text alone."""
    message = {"role": "assistant", "content": text, "refusal": None}
    sample = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "output_text": text,
        "output_json": parse_object(text),
        "output_tools": [],
    }
    return Observation(item, sample)


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is; None where it is none."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return cast(dict[str, Any], value) if isinstance(value, dict) else None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens that a model grader took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class Score:
    """What a grader found."""

    reward: float
    #: What went wrong: a flag, and its case in words.
    faults: Mapping[Flag, str] = field(default_factory=dict[Flag, str])
    #: By the name of the model that was asked.
    usage: Mapping[str, TokenUsage] = field(default_factory=dict[str, TokenUsage])
    #: The model that answered, as it calls itself.
    sampled_model_name: str | None = None
    #: A multi-grader's graders.
    parts: Mapping[str, Grade] = field(default_factory=dict[str, "Grade"])
    #: A model that was to be asked is not there now: this says nothing of the answer. Whoever can wait asks again.
    is_unreachable: bool = False


@dataclass(frozen=True, slots=True)
class Grade:
    """A grader's score, and how long it took."""

    name: str
    type: str
    score: Score
    execution_time_s: float

    @property
    def reward(self) -> float:
        return self.score.reward


def grade_to_json(grade: Grade) -> dict[str, Any]:
    """The grade as plain data, from which `grade_from_json` makes it again."""
    parts = {name: grade_to_json(part) for name, part in grade.score.parts.items()}
    usage = {model: asdict(own) for model, own in grade.score.usage.items()}
    score = {
        "reward": grade.score.reward,
        "faults": dict(grade.score.faults),
        "usage": usage,
        "sampled_model_name": grade.score.sampled_model_name,
        "parts": parts,
    }
    return {"name": grade.name, "type": grade.type, "score": score, "execution_time_s": grade.execution_time_s}


def grade_from_json(value: Mapping[str, Any]) -> Grade:
    score = dict(value["score"])
    score["usage"] = {model: TokenUsage(**own) for model, own in score["usage"].items()}
    score["parts"] = {name: grade_from_json(part) for name, part in score["parts"].items()}
    return Grade(value["name"], value["type"], Score(**score), value["execution_time_s"])


class GraderFault(Exception):
    """A grader has no score to give: `flags` say why, `details` in words that the user may read.

    A judge that answered nonsense used its tokens all the same: `usage` and `sampled_model_name` go with the fault.
    """

    def __init__(
        self,
        *flags: Flag,
        details: str,
        usage: Mapping[str, TokenUsage] | None = None,
        sampled_model_name: str | None = None,
        is_unreachable: bool = False,
    ) -> None:
        super().__init__(f"{', '.join(flags)}: {details}")
        faults = dict.fromkeys(flags, details)
        self.score = Score(0.0, faults, usage or {}, sampled_model_name, is_unreachable=is_unreachable)


class Grader(Protocol):
    """A grader, checked and ready: nothing of it is looked up or parsed again."""

    @property
    def name(self) -> str: ...

    @property
    def type(self) -> str: ...

    async def score(self, observation: Observation) -> Score:
        """Raises GraderFault where there is no score."""
        ...


async def grade(grader: Grader, observation: Observation) -> Grade:
    """The grade of `observation`. An answer that was cut off or never came is not graded; its reward is 0."""
    began_s = time.perf_counter()
    try:
        _check_answer(observation)
        score = await grader.score(observation)
    except GraderFault as fault:
        score = fault.score
    except Exception:
        logger.exception("the grader '%s' (%s) failed in a way that nobody foresaw", grader.name, grader.type)
        score = Score(0.0, {"other_error": "The grader failed. The server's log says how."})
    return Grade(grader.name, grader.type, score, time.perf_counter() - began_s)


def _check_answer(observation: Observation) -> None:
    if observation.is_empty:
        raise GraderFault("unresponsive_reward_error", details="The model gave no answer.")
    if observation.is_cut_off:
        raise GraderFault("truncated_observation_error", details="The model's answer was cut off by its token limit.")
